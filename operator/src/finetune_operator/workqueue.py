"""Which job is reconciled next, and when: a set of due times; a job is never reconciled twice at once.

It has no task and no timer of its own, so that a test controls the clock. The workers of runtime.py take from it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from .identity import Key

RETRY = (0.5, 60.0)
"""Seconds before the first repetition after an error, and at most; doubled in between, and jittered."""


class WorkQueue:
    """Keys and their due times in seconds of the clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        """Times of _due, and older ones that no longer count."""
        self._busy: set[Key] = set()
        self._again: dict[Key, float] = {}
        """Due times of jobs that are being reconciled."""
        self._failures: dict[Key, int] = {}

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Reconcile a job after a delay, or earlier if it is already due earlier."""
        due = self._clock() + delay
        if key in self._busy:
            self._again[key] = min(due, self._again.get(key, due))
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))

    def retry(self, key: Key, most: float = RETRY[1]) -> float:
        """Reconcile again after an error; the delay in seconds grows with every error in a row, up to `most`."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(most, RETRY[0] * 2 ** min(failures - 1, 10)) * random.uniform(0.8, 1.2)  # noqa: S311
        self.add(key, delay)
        return delay

    def succeeded(self, key: Key) -> None:
        """The errors of a job are over."""
        self._failures.pop(key, None)

    def take(self) -> Key | None:
        """A job that is due and not being reconciled, or None. done() must follow."""
        if self.wait_seconds() != 0:
            return None
        _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._busy.add(key)
        return key

    def done(self, key: Key) -> None:
        """The pass is over; what was added meanwhile becomes due."""
        self._busy.discard(key)
        if key in self._again:
            self.add(key, self._again.pop(key) - self._clock())

    def wait_seconds(self) -> float | None:
        """Seconds until the next job is due, 0 if one is; None: nothing is planned."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None

    def depth(self) -> int:
        """Jobs that are due now."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())
