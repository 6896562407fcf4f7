"""Whether the operator's watches work. A dead watch leaves everything else looking healthy.

Each watch has evidence of its own. Of jobs, runs, pods and events, comparison.py compares lists with what the watch
delivered; the watch of Leases delivers nothing but our own heartbeats, which have to come back. Pure: kopf's own
liveness endpoint, and the names of its tasks, say nothing about what a stream delivers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .identity import Key

DEAD_AFTER = 2
"""Comparisons with missed changes, nothing but silence between them, after which a watch is dead. One may be an
accident, which the comparison has repaired."""


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


class WatchEvidence:
    """What one watch has delivered: the last version of each object, also of those that the cache does not take."""

    def __init__(self) -> None:
        self._versions: dict[Key, int] = {}
        self._deleted: dict[Key, int] = {}
        """Deletions since the last list."""
        self._newest = 0
        """Newest version that came through the stream; lists of the watch say nothing about its stream."""
        self._deliveries = 0
        self._checked = 0
        """_newest at the last check."""
        self._misses = 0
        self.restarts = 0
        """Restarts since the stream last delivered everything."""

    @property
    def deliveries(self) -> int:
        """Grows with everything that the watch delivers."""
        return self._deliveries

    def delivered(self, change: str | None, key: Key, version: int) -> None:
        """The watch delivered a version; None: in its own list."""
        self._deliveries += 1
        if change is not None:
            self._newest = max(self._newest, version)
        if change == "DELETED":
            self._versions.pop(key, None)
            self._deleted[key] = version
        else:
            self._versions[key] = version

    def behind(self, listed: Mapping[Key, int], version: int) -> dict[Key, int]:
        """Objects that a list of that version shows otherwise than the watch has, with the version of the change."""
        known, deleted = self._versions, self._deleted
        newer = {k: v for k, v in listed.items() if v > known.get(k, 0) and v > deleted.get(k, 0)}
        return newer | {k: version for k, v in known.items() if k not in listed and v <= version}

    def missed(self, behind: Mapping[Key, int], listed: Mapping[Key, int], version: int, since: int) -> set[Key]:
        """Those of an earlier behind() that will not come: the stream is past them, or it has stood still.

        since: deliveries at that time. A stream that merely lags still delivers, in the order of versions.
        """
        still, silent = self.behind(listed, version), self._deliveries == since
        return {k for k, v in behind.items() if k in still and (silent or v <= self._newest)}

    def settle(self, missed: set[Key], listed: Mapping[Key, int], version: int) -> None:
        """What was missed is known now, and is not missed again."""
        for key in missed:
            self._versions.pop(key, None)
            if key in listed:
                self._versions[key] = listed[key]
        self._deleted = {k: v for k, v in self._deleted.items() if v > version}

    def is_dead(self, *, missed: bool) -> bool:
        """Whether the watch is dead, after a comparison. A quiet one proves nothing either way."""
        alive, self._checked = self._newest > self._checked, self._newest
        if missed:
            self._misses += 1
        elif alive:
            self._misses = self.restarts = 0
        return self._misses >= DEAD_AFTER

    def restarted(self) -> None:
        """The watch begins again."""
        self._misses = 0
        self.restarts += 1
