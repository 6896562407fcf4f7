"""What all rows of one session share: a control plane, the reference lives, and threads to run rows side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_api.codegen.crd import crd
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd, start_training_operator

from .disturbances import DISTURBANCES
from .lives import LIVES, SAMPLED
from .records import Ledger
from .rows import Outcome, Row, undisturbed

SIDE_BY_SIDE = 8
"""Rows at a time. Most of a row is waiting; more of them would only lengthen each other on two cores."""
IDLE = 16
"""Trials at a time that do nothing but wait for a minute or two."""


class Bed:
    """Started by the first question for its rows or its control plane, ended by close()."""

    def __init__(self, folder: Callable[[str], Path]) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._futures: dict[str, Future[Any]] = {}

    def close(self) -> None:
        self._stack.close()

    @cached_property
    def plane(self) -> ControlPlane:
        """API server with an audit log, controller manager, Training Operator."""
        plane = ControlPlane(self._folder("plane"), crds=[pytorchjob_crd(), crd()], audit=True, controllers=True)
        self._stack.enter_context(plane)
        start_training_operator(plane)
        return plane

    @cached_property
    def ledger(self) -> Ledger:
        ledger = Ledger(self.plane.cluster.api)
        ledger.start()
        self._stack.callback(ledger.stop)
        return ledger

    @cached_property
    def references(self) -> dict[str, Outcome]:
        """Every life as it is when nothing happens."""
        return {life: undisturbed(self.plane, self.ledger, self._folder(life), life) for life in LIVES}

    def rows(self) -> Iterator[Row]:
        """Every disturbance at every write of the reference lives; of some, only the one that removes the run.

        CHAOS=full in the environment: at every write of all of them.
        """
        for life, reference in self.references.items():
            for number, write in enumerate(reference.writes, 1):
                whole = life not in SAMPLED or write == "delete-pytorchjobs" or os.environ.get("CHAOS") == "full"
                for disturbance in DISTURBANCES if whole else ("killed",):
                    yield Row(life, number, write, disturbance)

    @cached_property
    def _pools(self) -> dict[bool, ThreadPoolExecutor]:
        """For trials that idle, and for the others."""
        pools = {True: ThreadPoolExecutor(IDLE), False: ThreadPoolExecutor(SIDE_BY_SIDE)}
        for pool in pools.values():
            self._stack.callback(pool.shutdown, cancel_futures=True)
        return pools

    def begin(self, name: str, work: Callable[..., Any], *, idle: bool = False, **arguments: Any) -> None:
        """Start a trial in the background, in a folder of its own."""
        self._futures[name] = self._pools[idle].submit(work, self, self._folder("trial"), **arguments)

    def result(self, name: str) -> Any:
        """What the trial of that name came to, once it is over; raises what it raised."""
        return self._futures[name].result()
