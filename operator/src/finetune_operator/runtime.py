"""The operator's own loops: workers that reconcile jobs, the resync, the heartbeat. Started by __main__.py.

Watches only report that something changed (`on_event`); the pass over the whole job decides what follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from finetune_api.resource import names
from finetune_plan.backends.protocol import Backend

from . import events, metrics
from .apply import Applier
from .cache import Cache
from .cluster import Cluster, Kind
from .comparison import Comparison
from .errors import ClusterError
from .event_queue import EventQueue
from .health import Canary, WatchEvidence
from .identity import Json, Key, key_of, version_of
from .observe import Observer
from .progress import PodLog, ProgressReaders
from .reconcile import Reconciler, process
from .settings import Settings
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""Longest sleep of a worker that has nothing to do."""
RESYNC_RETRY_SECONDS = 2.0
GRACE_SECONDS = 10.0
"""Seconds that a watch has to deliver what a list shows: at most, and a third of the time between two resyncs."""
RECONCILE_ALL_SECONDS = 300.0
"""Seconds between two passes over a job that has not ended, whatever happens to it."""
RESTART_SHARE = 2 / 3
"""Part of canary_patience_seconds after which watches begin again: more than kopf's 70 s for a silent stream."""


class Operator:
    """Everything that outlives one pass over one job."""

    def __init__(self, cluster: Cluster, settings: Settings, backend: Backend) -> None:
        self.cluster, self.settings, self.backend = cluster, settings, backend
        self.cache = Cache(backend)
        self.queue = WorkQueue(time.monotonic, settings.workers)
        self.events = EventQueue(cluster.create_event)
        self.progress = ProgressReaders(cluster, settings, time.monotonic, self.enqueue, self.on_unreadable_log)
        observer = Observer(cluster, self.cache, self.progress, settings, time.monotonic)
        applier = Applier(cluster, self.cache, backend.kind, self.events)
        self.reconciler = Reconciler(observer, applier, settings, backend, time.monotonic, lambda: datetime.now(UTC))
        self.canary = Canary(time.monotonic)
        self.watches = {kind: WatchEvidence() for kind in Kind}
        grace = min(GRACE_SECONDS, settings.resync_seconds / 3)
        self._comparison = Comparison(cluster, self.watches, self._repair, grace)
        self.restart = asyncio.Event()
        """Set when a watch is dead: all of them begin again."""
        self._silent, self._unhelped = False, ""
        self._list_again, self._all_at = asyncio.Event(), 0.0
        self.synced = asyncio.Event()
        """Set when everything was listed once. Before that, a missing child means nothing."""
        self._turn, self._wake = asyncio.Lock(), asyncio.Event()
        self._stopping = False

    def on_event(self, kind: Kind, change: str | None, raw: Json) -> None:
        """A watch reports a change of an object; None: the object was listed."""
        self.watches[kind].delivered(change, key_of(raw), version_of(raw))
        self._changed(kind, change, raw)

    def _changed(self, kind: Kind, change: str | None, raw: Json) -> None:
        """A version that is already cached triggers no pass: its first arrival did."""
        if kind is Kind.EVENTS:
            self.enqueue(self.cache.refusals.on_event(change, raw))
            return
        if change == "DELETED":
            self.cache.drop(kind, raw)
        elif not self.cache.put(kind, raw):
            return
        self.enqueue(self.cache.subject(kind, raw))

    def on_unreadable_log(self, found: PodLog, error: str) -> None:
        """The log of a job's first pod could not be read for long."""
        if job := self.cache.job(found.job):
            now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
            self.events.put(events.progress_unknown(job, found.pod, found.uid, found.node, error, now))

    def enqueue(self, key: Key | None) -> None:
        """Reconcile a job soon."""
        if key:
            self.queue.add(key)
            self._wake.set()

    def stop(self) -> None:
        """Workers finish their current pass."""
        self._stopping = True
        self._wake.set()

    async def work(self) -> None:
        """Reconcile jobs one after the other. settings.workers of these run concurrently."""
        await self.synced.wait()
        while True:
            async with self._turn:  # one waits for what is due, the others for it
                key = await self._next()
            if key is None:
                return
            await process(self.queue, self.reconciler, key)
            self._wake.set()  # what was added during the pass may be due, and what waited for a worker

    async def resync(self) -> None:
        """List everything at the start and when watches began again; else compare, to find what they missed."""
        self._list_again.set()
        while True:
            full = self._list_again.is_set()
            self._list_again.clear()
            try:
                await (self.resync_once() if full else self.compare_once())
            except ClusterError as error:
                log.warning("resync failed", extra={"error": str(error)})
                await asyncio.sleep(RESYNC_RETRY_SECONDS)
                if full:
                    self._list_again.set()
                continue
            self.synced.set()
            await _wait(self._list_again, self._comparison.pause_seconds(self.settings.resync_seconds))

    async def resync_once(self) -> None:
        """Bring the cache up to date, and queue every job that has not ended."""
        first = not self.synced.is_set()
        for kind in (Kind.JOBS, Kind.RUNS, Kind.PODS):
            await self._list(kind)
        await self.reconciler.observer.backend()
        self._reconcile_all([key for key, _ in self.cache.jobs.items()] if first else self.cache.unfinished())

    async def compare_once(self) -> None:
        """Repair what watches missed; restart them if one is dead."""
        dead = await self._comparison.run()
        self._unhelped = ", ".join(kind for kind in dead if self.watches[kind].restarts)
        if fresh := [kind for kind in dead if not self.watches[kind].restarts]:
            self._restart_watches(*fresh)
        if time.monotonic() - self._all_at >= RECONCILE_ALL_SECONDS:
            self._reconcile_all(self.cache.unfinished())

    def watches_began_again(self) -> None:
        """What was deleted while nothing watched is found by a list only."""
        self._list_again.set()

    def check_heartbeat(self) -> None:
        """Restart the watches, once, if a heartbeat does not come back."""
        silent = self.canary.age() > RESTART_SHARE * self.settings.canary_patience_seconds
        if silent and not self._silent:
            self._restart_watches("leases")
        self._silent = silent

    def unhealthy_reason(self) -> str:
        """Why this process should restart; empty while its watches work, or may yet after they begin again."""
        if self.canary.age() > self.settings.canary_patience_seconds:
            return f"no heartbeat came back through the watch for {self.canary.age():.0f} s"
        return self._unhelped and f"the watch of {self._unhelped} began again and still misses changes"

    async def heartbeat(self) -> None:
        """Write a heartbeat that has to come back through the watch."""
        where = Key(self.settings.own_namespace, names.LEASE)
        while True:
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            try:
                await self.cluster.write_heartbeat(where, names.LEASE, now)
            except ClusterError as error:
                log.warning("heartbeat failed", extra={"error": str(error)})
            else:
                self.canary.sent(now)
            await asyncio.sleep(self.settings.canary_seconds)

    async def _list(self, kind: Kind) -> None:
        listed: set[Key] = set()
        version = 0
        async for items, version in self.cluster.pages(kind):  # noqa: B007
            listed.update(map(key_of, items))
            for raw in items:
                self._changed(kind, None, raw)
        self.cache.keep(kind, listed, version)

    async def _next(self) -> Key | None:
        """The next job that is due; None at the end."""
        while not self._stopping:
            if key := self.queue.take():
                return key
            await self._idle()
        return None

    async def _repair(self, kind: Kind, missed: set[Key], listed: Mapping[Key, int], version: int) -> None:
        """Read what a watch missed, one by one since objects may be large, and reconcile the jobs around it."""
        for key in missed & listed.keys():
            if raw := await self.cluster.read(kind, key):
                self._changed(kind, None, raw)
        if kind is not Kind.EVENTS:
            self.cache.keep(kind, set(listed), version)
        namespaces = {key.namespace for key in missed}
        for key in {*(missed if kind is Kind.JOBS else ()), *self.cache.unfinished()}:
            if key.namespace in namespaces:
                self.enqueue(key)

    def _reconcile_all(self, keys: Iterable[Key]) -> None:
        self._all_at = time.monotonic()
        for key in keys:
            self.enqueue(key)
        self.reconciler.observer.forget({entry.value.uid for _, entry in self.cache.runs.items()})
        self.cache.refusals.keep()

    def _restart_watches(self, *dead: str) -> None:
        log.error("a watch is dead; all watches begin again", extra={"watches": ", ".join(dead)})
        metrics.WATCH_RESTARTS.inc()
        for kind in set(dead) & set(self.watches):
            self.watches[Kind(kind)].restarted()
        self.restart.set()

    async def _idle(self) -> None:
        """Sleep until a job is due or an event arrives."""
        self._wake.clear()
        wait = self.queue.wait_seconds()
        await _wait(self._wake, IDLE_SECONDS if wait is None else wait)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event is set, and no longer than that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
