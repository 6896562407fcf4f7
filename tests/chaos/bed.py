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
from .lives import LIVES
from .records import Ledger
from .rows import Outcome, Row, places, undisturbed

SIDE_BY_SIDE = 8
"""Rows at a time. Most of a row is waiting; more of them would only lengthen each other on two cores."""
REFERENCES = 4
"""Reference lives at a time: few, so that nothing comes late."""
SAMPLES = ("delete-pytorchjobs", "patch-persistentvolumeclaims", "create-pytorchjobs")
"""Where a life is disturbed in other ways than by a kill: the first that it has."""
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
        plane, ledger = self.plane, self.ledger
        with ThreadPoolExecutor(REFERENCES) as pool:
            play = lambda life: undisturbed(plane, ledger, self._folder(life), life)  # noqa: E731
            return dict(zip(LIVES, pool.map(play, LIVES), strict=True))

    def rows(self) -> Iterator[Row]:
        """The operator killed at every write of the reference lives, and all else at one write of each.

        CHAOS=full in the environment: everything at every write.
        """
        for life, reference in self.references.items():
            sample = next(write for write in SAMPLES if write in reference.writes)
            for number, (at, write) in enumerate(places(reference.writes).items(), 1):
                whole = os.environ.get("CHAOS") == "full" or number == reference.writes.index(sample) + 1
                for disturbance in DISTURBANCES if whole else ("killed",):
                    yield Row(life, number, at, write, disturbance)

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
