"""Which job is reconciled next, and when: a set of due times; a job is never reconciled twice at once.

It has no task and no timer of its own, so that a test controls the clock. The workers of runtime.py take from it.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

from .identity import Key

RETRY = (0.5, 60.0)
"""Seconds before the first repetition after an error, and at most; doubled in between, and jittered."""
SLOW_SECONDS = 2.0
"""Duration of a pass from which on its job counts as in trouble. Most passes take a hundredth of it."""


class WorkQueue:
    """Keys and their due times in seconds of the clock.

    A job is in trouble when its last pass failed or was slow, and while a pass of it is slow. Jobs in trouble never
    take more than half of the workers. So a job that is fine waits for others that are fine and came earlier, and for
    none of those in trouble, however many they are; with one worker alone it waits for one of their passes. Among
    each other both sorts are taken by due time.
    """

    def __init__(self, clock: Callable[[], float], workers: int) -> None:
        self._clock, self._most_in_trouble = clock, max(1, workers // 2)
        self._due: dict[Key, float] = {}
        self._heaps: dict[bool, list[tuple[float, Key]]] = {False: [], True: []}
        """Of jobs that are fine and in trouble: times of _due, and older ones that no longer count."""
        self._busy: dict[Key, float] = {}
        """Jobs that are being reconciled, and since when."""
        self._again: dict[Key, float] = {}
        """Due times of jobs that are being reconciled."""
        self._failures: dict[Key, int] = {}
        self._slow: set[Key] = set()

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Reconcile a job after a delay, or earlier if it is already due earlier."""
        due = self._clock() + delay
        if key in self._busy:
            self._again[key] = min(due, self._again.get(key, due))
        elif due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heaps[self._in_trouble(key)], (due, key))

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
        """A job that is due, not being reconciled, and may take a worker; or None. done() must follow."""
        if self.wait_seconds() != 0:
            return None
        heap = min(self._open_heaps(), key=lambda each: each[0])
        _, key = heapq.heappop(heap)
        del self._due[key]
        self._busy[key] = self._clock()
        return key

    def done(self, key: Key) -> None:
        """The pass is over; what was added meanwhile becomes due."""
        if self._is_slow(self._busy.pop(key)):
            self._slow.add(key)
        else:
            self._slow.discard(key)
        if key in self._again:
            self.add(key, self._again.pop(key) - self._clock())

    def wait_seconds(self) -> float | None:
        """Seconds until a job may be taken, 0 if one may; None: no such time is known before a pass is over."""
        first = min((heap[0][0] for heap in self._open_heaps()), default=None)
        return None if first is None else max(0.0, first - self._clock())

    def depth(self) -> int:
        """Jobs that are due now."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    def _open_heaps(self) -> Iterator[list[tuple[float, Key]]]:
        """The heaps from which a job may be taken."""
        taken = sum(self._in_trouble(key) or self._is_slow(since) for key, since in self._busy.items())
        for in_trouble, heap in self._heaps.items():
            while heap and self._due.get(heap[0][1]) != heap[0][0]:
                heapq.heappop(heap)
            if heap and not (in_trouble and taken >= self._most_in_trouble):
                yield heap

    def _in_trouble(self, key: Key) -> bool:
        return key in self._failures or key in self._slow

    def _is_slow(self, since: float) -> bool:
        return self._clock() - since > SLOW_SECONDS
