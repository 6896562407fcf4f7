"""The operator's own loops: workers that reconcile jobs, the resync, the heartbeat. Started by __main__.py.

Watches only report that something changed (`on_event`); the pass over the whole job decides what follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime

from finetune_api.resource import names
from finetune_api.resource.names import PLURAL
from finetune_plan.backends.protocol import Backend

from . import events
from .apply import Applier
from .cache import Cache
from .cluster import Cluster, Kind
from .errors import ClusterError
from .event_queue import EventQueue
from .health import Canary, Watches, task_names
from .identity import Json, Key, key_of
from .observe import Observer
from .progress import PodLog, ProgressReaders
from .reconcile import Reconciler, process
from .settings import Settings
from .workqueue import WorkQueue

log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""Longest sleep of a worker that has nothing to do."""
RESYNC_RETRY_SECONDS = 2.0


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
        self._watches = Watches(time.monotonic, task_names)
        self.synced = asyncio.Event()
        """Set when everything was listed once. Before that, a missing child means nothing."""
        self._turn, self._wake = asyncio.Lock(), asyncio.Event()
        self._stopping = False

    def on_event(self, kind: Kind, change: str | None, raw: Json) -> None:
        """A watch reports a change of an object; None: the object was listed.

        A version that is already cached triggers no pass: its first arrival did.
        """
        if change == "DELETED":
            self.cache.drop(kind, raw)
        elif not self.cache.put(kind, raw):
            return
        self.enqueue(self.cache.subject(kind, raw))

    def on_refusal_event(self, change: str | None, event: Json) -> None:
        """A watch reports an Event about pods that were refused."""
        self.enqueue(self.cache.refusals.on_event(change, event))

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
        """List everything at the start, and periodically to find what a watch missed."""
        while True:
            try:
                await self.resync_once()
            except ClusterError as error:
                log.warning("resync failed", extra={"error": str(error)})
                await asyncio.sleep(RESYNC_RETRY_SECONDS)
                continue
            self.synced.set()
            await asyncio.sleep(self.settings.resync_seconds)

    async def resync_once(self) -> None:
        """Bring the cache up to date, and queue every job that has not ended."""
        first = not self.synced.is_set()
        for kind in (Kind.JOBS, Kind.RUNS, Kind.PODS):
            await self._list(kind)
        await self.reconciler.observer.backend()
        keys = [key for key, _ in self.cache.jobs.items()] if first else self.cache.unfinished()
        for key in keys:
            self.enqueue(key)
        self.reconciler.observer.forget({entry.value.uid for _, entry in self.cache.runs.items()})
        self.cache.refusals.keep()

    def unhealthy_reason(self) -> str:
        """Why this process should restart; empty while its watches work."""
        patience = self.settings.canary_patience_seconds
        if self.canary.age() > patience:
            return f"no heartbeat came back through the watch for {self.canary.age():.0f} s"
        needed = (*NEEDED, *((f"{self.backend.plural}.",) if self.reconciler.observer.has_backend else ()))
        missing = self._watches.missing(needed)
        return next((f"{name}* was not watched for {s:.0f} s" for name, s in missing.items() if s > patience), "")

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
                self.on_event(kind, None, raw)
        self.cache.keep(kind, listed, version)

    async def _next(self) -> Key | None:
        """The next job that is due; None at the end."""
        while not self._stopping:
            if key := self.queue.take():
                return key
            await self._idle()
        return None

    async def _idle(self) -> None:
        """Sleep until a job is due or an event arrives."""
        self._wake.clear()
        wait = self.queue.wait_seconds()
        try:
            async with asyncio.timeout(IDLE_SECONDS if wait is None else wait):
                await self._wake.wait()
        except TimeoutError:
            return


NEEDED = (f"{PLURAL}.", "pods.", "events.", "leases.")
"""Watches that are always required; that of the backend's resource only where it exists."""
