"""Compares what the API server holds with what the watches delivered, by lists of metadata only.

A change that a watch dropped is counted and repaired: the objects are read, and their jobs reconciled. It is also the
evidence by which a dead watch is known (health.py).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeVar

from . import metrics
from .cluster import Cluster, Kind
from .errors import ClusterError
from .health import WatchEvidence
from .identity import Key

T = TypeVar("T")

log = logging.getLogger(__name__)

SHARE = 10
"""The pause after a comparison, in durations of its lists: they take less than a tenth of one core."""
LONGEST_PAUSE = 36.0
"""Seconds: with 10 for the watch and two lists of 7, a dropped event is repaired within 60."""

Repair = Callable[[Kind, set[Key], Mapping[Key, int], int], Awaitable[None]]
"""Reads missed objects of a kind, given the list that shows them and the version of that list."""


class _Listed(NamedTuple):
    versions: dict[Key, int]
    version: int
    behind: dict[Key, int]
    since: int

    @property
    def served(self) -> bool:
        return self.version != sys.maxsize


class Comparison:
    """One for all kinds; grace: seconds that a change which a list shows may take through the watch."""

    def __init__(self, cluster: Cluster, watches: Mapping[Kind, WatchEvidence], repair: Repair, grace: float) -> None:
        self._cluster, self._watches, self._repair, self._grace = cluster, watches, repair, grace
        self._seconds = 0.0
        """What the last lists took."""

    async def run(self) -> list[Kind]:
        """Compare once, and repair; the kinds whose watch is dead. One that cannot be read holds up no other."""
        begun = time.monotonic()
        lists = {kind: found for kind in self._watches if (found := await _attempt(kind, self._list(kind)))}
        self._seconds = time.monotonic() - begun
        if any(found.behind for found in lists.values()):
            await asyncio.sleep(self._grace)
        return [kind for kind, found in lists.items() if await _attempt(kind, self._is_dead(kind, found))]

    def pause_seconds(self, usual: float) -> float:
        """Seconds until the next comparison: more objects, less often."""
        return pause_seconds(usual, self._seconds)

    async def _list(self, kind: Kind) -> _Listed:
        versions: dict[Key, int] = {}
        version = 0
        async for page, version in self._cluster.versions(kind):  # noqa: B007
            versions.update(page)
        watch = self._watches[kind]
        return _Listed(versions, version, watch.behind(versions, version), watch.deliveries)

    async def _is_dead(self, kind: Kind, found: _Listed) -> bool:
        watch = self._watches[kind]
        missed = watch.missed(found.behind, found.versions, found.version, found.since)
        if missed and found.served:
            metrics.MISSED.labels(kind=kind).inc(len(missed))
            log.warning("a watch missed changes", extra={"kind": kind, "objects": sorted(map(str, missed))[:10]})
        await self._repair(kind, missed, found.versions, found.version)
        watch.settle(missed, found.versions, found.version)
        # nothing watches a kind that does not exist
        return found.served and watch.is_dead(missed=bool(missed))


async def _attempt(kind: Kind, step: Awaitable[T]) -> T | None:
    """The result; None if the API server did not answer, which the metric of requests counts."""
    try:
        return await step
    except ClusterError as error:
        log.warning("watch not compared", extra={"kind": kind, "error": str(error)})
        return None


def pause_seconds(usual: float, lists: float) -> float:
    """Seconds between two comparisons whose lists take so long."""
    return max(usual, min(LONGEST_PAUSE, SHARE * lists))
