"""Whether the operator's watches work. A dead watch leaves everything else looking healthy.

Two checks: a heartbeat written to a Lease must come back through a watch, and the task of every required watch must
exist. kopf's own liveness endpoint checks neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


class Canary:
    """Heartbeats in flight: written, and not yet received through the watch."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pending: dict[str, float] = {}

    def sent(self, time: str) -> None:
        """A heartbeat was written. A failed write shows nothing about the watch, so it does not count."""
        self._pending[time] = self._clock()

    def received(self, time: str) -> None:
        """A heartbeat was received; earlier ones may have been merged into it."""
        self._pending = {t: at for t, at in self._pending.items() if t > time}

    def age(self) -> float:
        """Seconds since the oldest heartbeat that has not come back was written; 0 if all have."""
        oldest = next(iter(self._pending.values()), None)
        return 0.0 if oldest is None else self._clock() - oldest


class Watches:
    """The tasks in which kopf watches, by the resource that they watch."""

    def __init__(self, clock: Callable[[], float], tasks: Callable[[], Iterable[str]]) -> None:
        self._clock, self._tasks = clock, tasks
        self._missing: dict[str, float] = {}

    def missing(self, needed: Iterable[str]) -> dict[str, float]:
        """Seconds since when each needed watch, such as "pods.v1", was found absent."""
        alive = [name for name in self._tasks() if name.startswith(_PREFIX)]
        absent = {w for w in needed if not any(name.startswith(f"{_PREFIX}{w}") for name in alive)}
        now = self._clock()
        self._missing = {w: self._missing.get(w, now) for w in absent}
        return {w: now - since for w, since in self._missing.items()}


_PREFIX = "watcher for "
"""How kopf names the tasks of its watches; tests/operator/test_health.py notices if it no longer does."""


def task_names() -> list[str]:
    """Names of the tasks that run in this loop."""
    return [task.get_name() for task in asyncio.all_tasks() if not task.done()]
