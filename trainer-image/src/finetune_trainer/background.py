"""Checkpoints are written on a thread, with a process group of its own, while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

from finetune_api.runtime.report import CheckpointRecord

from .collectives import new_channel, on_channel


class BackgroundSave:
    """At most one save at a time. Every rank begins the same ones, in the same order."""

    def __init__(self) -> None:
        """Collective."""
        self._channel = new_channel("checkpoints")
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._running: Future[CheckpointRecord] | None = None

    @property
    def succeeded(self) -> bool:
        """Whether this rank has done its part of the save that was begun last; not once that was waited for."""
        return self._running is not None and self._running.done() and self._running.exception() is None

    @property
    def failed(self) -> bool:
        return self._running is not None and self._running.done() and self._running.exception() is not None

    def begin(self, step: int, work: Callable[[], None], copied: float) -> None:
        """Do the collective `work`, which saves `step`. `copied`: seconds in which training stood still for it."""
        assert self._running is None, "the save before has not been waited for"
        self._running = self._thread.submit(self._save, step, work, copied)

    def wait(self) -> CheckpointRecord | None:
        """The record of the save that was begun last, when it is done; None if there is none to wait for.

        Raises what it raised: the same RunError on every rank.
        """
        running, self._running = self._running, None
        if running is None:
            return None
        began = time.monotonic()
        record = running.result()
        blocked = record.blocked_seconds + time.monotonic() - began
        return record.model_copy(update={"blocked_seconds": blocked})

    def settle(self, limit_s: float) -> None:
        """Give the save that is under way the time to end, however it ends: another error ends the run."""
        if self._running is not None:
            futures.wait([self._running], limit_s)

    def _save(self, step: int, work: Callable[[], None], copied: float) -> CheckpointRecord:
        began = time.monotonic()
        with on_channel(self._channel):
            work()
        seconds = copied + time.monotonic() - began
        return CheckpointRecord(time=time.time(), step=step, seconds=seconds, blocked_seconds=copied)
