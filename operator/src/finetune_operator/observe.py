"""Reads: a job, its runs, its pods and what was read of rank 0's log, as one frozen Observed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable

from finetune_api.runtime.report import Record
from finetune_plan import gang, job_settings, network, resolve, results
from finetune_plan.model import Observed, ObservedClaim, ObservedPod, ObservedQueue, ObservedRun
from finetune_plan.network_evidence import Nodes

from . import metrics, transform
from .cache import Cache
from .cluster import Cluster, Kind
from .errors import ClusterError, NameTaken, Refused, WebhookFailed
from .identity import Json, Key, key_of
from .progress import ProgressReaders
from .settings import Settings

BACKEND_SECONDS = 5.0
"""Seconds for which the answer about the backend's resource is cached."""
CLAIM_SECONDS = 1.0
"""Seconds for which a claim is cached, so that a burst of jobs on one claim reads it once."""
NODES_SECONDS = 50.0
"""Seconds for which nodes are cached: less than NODES_POLL_SECONDS in finetune_plan/decide.py."""
NODES_FAILED_SECONDS = 20.0
"""Seconds for which it is cached that they could not be read."""
NODES_TIMEOUT = 8.0
"""Longest time in seconds for which passes wait for nodes: 10,000 of them take about three."""
TERMINATION_POLL_SECONDS = 4.0
"""Seconds between lists of a terminating run's children: less than POLL_SECONDS in finetune_plan/decide.py."""


class Observer:
    """Keeps no state but the times of its last reads."""

    def __init__(
        self, cluster: Cluster, cache: Cache, progress: ProgressReaders, settings: Settings,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._cluster, self._cache, self.progress, self._settings = cluster, cache, progress, settings
        self._clock, self._plan = clock, settings.plan()
        self._backend: tuple[float, bool] | None = None
        self._nodes_known: tuple[float, Nodes] | None = None
        """Until when, and what."""
        self._reading_nodes = asyncio.Lock()
        self._queues: dict[str, tuple[float, ObservedQueue]] = {}
        """When and what was read last of each run, by UID, that a queue holds back."""
        self._terminating: dict[Key, float] = {}
        """When the children of jobs with a terminating run were last listed, or first seen terminating."""

    async def observe(self, key: Key, refusal: Refused | WebhookFailed | None = None) -> Observed | None:
        """What is known of a job now; None if there is none, or if it is being deleted and needs nothing."""
        job = self._cache.job(key)
        if job is None or "deletionTimestamp" in job["metadata"]:
            self.progress.forget(key)
            return None
        over = bool(job["status"].get("completionTime"))
        if not over and self._children_may_be_stale(key, job):
            await self._relist_children(job)
        runs, pods = self._cache.children(job)
        first = not (over or runs or job["status"].get("run"))
        return Observed(
            resource=job,
            runs=runs,
            pods=pods,
            records=self._records(key, () if over else pods),
            backend=bool(runs) or over or await self.backend(),
            refusal=str(refusal or ""),
            name_taken=isinstance(refusal, NameTaken),
            pods_refusal=next(
                (found for r in runs if (found := self._cache.refusals.of(Key(key.namespace, r.name), r.uid))), ""
            ),
            previous=() if over or runs else self._left_by_predecessors(job),
            queue=ObservedQueue() if over else await self._queue(key, runs),
            claim=await self._claim(key, job) if first else ObservedClaim(),
            nodes=await self._nodes(job) if first and self._settings.read_nodes else None,
        )

    def queue_seconds(self) -> float:
        """Seconds between two reads of why one run is queued: more jobs, each less often."""
        return max(self._settings.progress_seconds, len(self._queues) / self._settings.progress_reads_per_second)

    async def backend(self) -> bool:
        """Whether the backend's resource exists."""
        now = self._clock()
        if self._backend is None or now - self._backend[0] >= BACKEND_SECONDS:
            self._backend = (now, await self._cluster.serves(Kind.RUNS))
            metrics.BACKEND_MISSING.set(not self._backend[1])
        return self._backend[1]

    def invalidate_backend(self) -> None:
        """The resource was missing when it was needed: ask again."""
        self._backend = None

    def _children_may_be_stale(self, key: Key, job: Json) -> bool:
        """Whether children are missing or about to be: a deletion is reported once, and never by a restarted watch.

        A complete gang with missing pods is listed at once; runs and pods that end, and what a previous job of the
        name has left, are listed periodically.
        """
        runs, pods = self._cache.children(job)
        if gang.has_changed(job["status"], pods):
            return True
        ending = any(r.deleting for r in runs) or any(p.termination_deadline for p in pods)
        if not ending and (runs or not (pods or any(self._cache.predecessors(job)))):
            self._terminating.pop(key, None)
            return False
        now, asked = self._clock(), self._terminating.get(key)
        if asked is None or now - asked >= TERMINATION_POLL_SECONDS:
            self._terminating[key] = now
        return asked is not None and now - asked >= TERMINATION_POLL_SECONDS

    def _left_by_predecessors(self, job: Json) -> tuple[str, ...]:
        """Runs and pods of deleted jobs of the same name."""
        runs, pods = self._cache.predecessors(job)
        return (*(f"run {run.name}" for run in runs), *(f"pod {pod.name}" for pod in pods))

    async def _relist_children(self, job: Json) -> None:
        """Bring the children of one job, and of deleted ones of its name, up to date."""
        name = key_of(job)
        for kind in (Kind.RUNS, Kind.PODS):
            listed: set[Key] = set()
            async for items, version in self._cluster.pages(kind, name):  # noqa: B007
                listed.update(map(key_of, items))
                for raw in items:
                    self._cache.put(kind, raw)
            self._cache.keep_of(kind, name, listed, version)

    async def _claim(self, key: Key, job: Json) -> ObservedClaim:
        """The claim that the output of a new job lies on."""
        name = results.claim(job_settings.read(job))
        if not name:
            return ObservedClaim()
        claim, now = Key(key.namespace, name), self._clock()
        read, known = self._cache.claims.get(claim, (-CLAIM_SECONDS, ObservedClaim()))
        if now - read >= CLAIM_SECONDS:
            known = _observed_claim(await self._cluster.claim(claim) or {})
            current = {k: found for k, found in self._cache.claims.items() if now - found[0] < CLAIM_SECONDS}
            self._cache.claims = current | {claim: (now, known)}  # up to 256 KiB each
        return known

    async def _nodes(self, job: Json) -> Nodes | None:
        """Nodes, for a job whose network nothing else decides. One read serves all jobs that ask at once."""
        if not resolve.needs_nodes(job, self._plan):
            return None
        async with self._reading_nodes:
            if self._nodes_known is None or self._clock() >= self._nodes_known[0]:
                found = await self._read_nodes()
                seconds = NODES_FAILED_SECONDS if found.error else NODES_SECONDS
                self._nodes_known = (self._clock() + seconds, found)
            return self._nodes_known[1]

    async def _read_nodes(self) -> Nodes:
        """Jobs wait for nodes that cannot be read, and say so; passes do not."""
        seconds = min(NODES_TIMEOUT, self._settings.pass_seconds / 2)
        try:
            async with asyncio.timeout(seconds):
                nodes = self._cluster.nodes(network.gpu_labels(self._plan))
                found = [transform.node(raw) async for raw in nodes if transform.takes_pods(raw)]
        except ClusterError as error:
            return Nodes(error=str(error))
        except TimeoutError:
            return Nodes(error=f"no answer within {seconds:g} s")
        return Nodes(network.node_classes(found, self._plan))

    async def _queue(self, key: Key, runs: Iterable[ObservedRun]) -> ObservedQueue:
        """Why a queue holds the job's run back. Kueue may not have seen the run yet when it is first asked for."""
        for run in runs:
            if not run.suspended:
                self._queues.pop(run.uid, None)
                continue
            now, (read, known) = self._clock(), self._queues.get(run.uid, (None, ObservedQueue()))
            if read is None or now - read >= self.queue_seconds():
                known = await self._read_queue(key, run, known, first=read is None)
                self._queues[run.uid] = (now, known)
            return known
        return ObservedQueue()

    async def _read_queue(self, key: Key, run: ObservedRun, known: ObservedQueue, *, first: bool) -> ObservedQueue:
        try:
            workload = await self._cluster.workload(key.namespace, run.uid)
        except ClusterError:  # why it waits is unknown; that it waits is not
            return known
        return transform.queue(workload, managed=first or bool(known.message))

    def _records(self, key: Key, pods: Iterable[ObservedPod]) -> tuple[Record, ...]:
        """The newest record of each kind that no pass has taken yet."""
        first = next((p for p in pods if p.node_rank == 0 and p.phase == "Running"), None)
        if first is not None:
            return self.progress.follow(key, first)
        self.progress.forget(key)
        return ()

    def forget(self, runs: Container[str]) -> None:
        """Drop expired caches, and what is known of jobs, and of runs by UID, that no longer exist."""
        self._cache.claims.clear()
        self._terminating.clear()
        self.progress.keep({key for key, _ in self._cache.jobs.items()})
        self._queues = {uid: found for uid, found in self._queues.items() if uid in runs}


def _observed_claim(claim: Json) -> ObservedClaim:
    modes = claim.get("spec", {}).get("accessModes") or ()
    return ObservedClaim(results.of_claim(claim.get("metadata", {}).get("annotations") or {}), tuple(modes))
