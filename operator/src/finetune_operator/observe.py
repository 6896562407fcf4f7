"""Reads: a job, its runs, its pods and the records of rank 0, as one frozen Observed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from finetune_api.runtime import report
from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    ProgressRecord,
    Record,
    ResumeRecord,
)
from finetune_plan import job_settings, results
from finetune_plan.decide import missing_pods
from finetune_plan.model import Observed, ObservedClaim, ObservedPod

from . import metrics
from .cache import Cache
from .cluster import Cluster, Kind
from .errors import ClusterError
from .identity import Json, Key, key_of
from .settings import Settings

BACKEND_SECONDS = 5.0
"""Seconds for which the answer about the backend's resource is cached."""
CLAIM_SECONDS = 1.0
"""Seconds for which a claim is cached, so that a burst of jobs on one claim reads it once."""
TERMINATION_POLL_SECONDS = 4.0
"""Seconds between lists of a terminating run's children: less than POLL_SECONDS in finetune_plan/decide.py."""
OVERLAP_SECONDS = 5
"""Read twice rather than never: clocks of nodes differ."""
_ORDER = (DatasetRecord, ResumeRecord, ProgressRecord, EvaluationRecord, CheckpointRecord)


class Observer:
    """Keeps no state but the times of its last reads."""

    def __init__(self, cluster: Cluster, cache: Cache, settings: Settings, clock: Callable[[], float]) -> None:
        self._cluster, self._cache, self._settings, self._clock = cluster, cache, settings, clock
        self._read: dict[str, float] = {}
        """When each rank 0, by UID of its pod, was read last."""
        self._backend: tuple[float, bool] | None = None
        self._terminating: dict[Key, float] = {}
        """When the children of jobs with a terminating run were last listed, or first seen terminating."""

    async def observe(self, key: Key, refusal: str = "") -> Observed | None:
        """What is known of a job now; None if there is none, or if it is being deleted and needs nothing."""
        job = self._cache.job(key)
        if job is None or "deletionTimestamp" in job["metadata"]:
            return None
        uid = job["metadata"]["uid"]
        over = bool(job["status"].get("completionTime"))
        if not over and self._children_may_be_stale(key, job):
            await self._relist_children(key.namespace, uid)
        runs, pods = self._cache.runs.of(uid), self._cache.pods.of(uid)
        return Observed(
            resource=job,
            runs=runs,
            pods=pods,
            records=() if over else await self._records(key, pods),
            backend=bool(runs) or over or await self.backend(),
            refusal=refusal,
            pods_refusal=next((found for r in runs if (found := self._cache.refusals.of(r.uid))), ""),
            claim=ObservedClaim() if over or runs or job["status"].get("run") else await self._claim(key, job),
        )

    def progress_seconds(self) -> float:
        """Seconds between two reads of one job: more jobs, each less often."""
        reads = len(self._read) / self._settings.progress_reads_per_second
        return max(self._settings.progress_seconds, reads)

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

        A complete gang with missing pods is listed at once; a terminating run is listed periodically.
        """
        uid = job["metadata"]["uid"]
        runs, pods = self._cache.runs.of(uid), self._cache.pods.of(uid)
        if missing_pods(job["status"], pods):
            return True
        if not any(r.deleting for r in runs) and (runs or not pods):
            self._terminating.pop(key, None)
            return False
        now, asked = self._clock(), self._terminating.get(key)
        if asked is None or now - asked >= TERMINATION_POLL_SECONDS:
            self._terminating[key] = now
        return asked is not None and now - asked >= TERMINATION_POLL_SECONDS

    async def _relist_children(self, namespace: str, uid: str) -> None:
        """Bring the children of one job up to date."""
        for kind in (Kind.RUNS, Kind.PODS):
            listed: set[Key] = set()
            async for items, version in self._cluster.pages(kind, namespace, uid):  # noqa: B007
                listed.update(map(key_of, items))
                for raw in items:
                    self._cache.put(kind, raw)
            self._cache.keep_of(kind, uid, listed, version)

    async def _claim(self, key: Key, job: Json) -> ObservedClaim:
        """The claim that the output of a new job lies on."""
        name = results.claim(job_settings.read(job))
        if not name:
            return ObservedClaim()
        claim, now = Key(key.namespace, name), self._clock()
        read, known = self._cache.claims.get(claim, (-CLAIM_SECONDS, ObservedClaim()))
        if now - read >= CLAIM_SECONDS:
            known = _observed_claim(await self._cluster.claim(claim) or {})
            self._cache.claims[claim] = (now, known)
        return known

    async def _records(self, key: Key, pods: Iterable[ObservedPod]) -> tuple[Record, ...]:
        """The newest record of each kind, if a read is due."""
        first = next((p for p in pods if p.node_rank == 0 and p.phase == "Running"), None)
        if first is None:
            return ()
        now, last = self._clock(), self._read.get(first.uid)
        if last is not None and now - last < self.progress_seconds():
            return ()
        self._read[first.uid] = now
        try:
            since = None if last is None else int(now - last) + OVERLAP_SECONDS
            text = await self._cluster.read_log(Key(key.namespace, first.name), since)
        except ClusterError:  # progress that cannot be read is unknown; the job continues
            metrics.UNREADABLE_PROGRESS.inc()
            return ()
        return newest(text.splitlines())

    def forget(self, alive: set[str]) -> None:
        """Drop the read times of pods that no longer exist, and expired caches."""
        self._cache.claims.clear()
        self._terminating.clear()
        self._read = {uid: at for uid, at in self._read.items() if uid in alive}


def _observed_claim(claim: Json) -> ObservedClaim:
    modes = claim.get("spec", {}).get("accessModes") or ()
    return ObservedClaim(claim.get("metadata", {}).get("annotations") or {}, tuple(modes))


def newest(lines: Iterable[str]) -> tuple[Record, ...]:
    """The last record of each kind, in the order in which a run makes them; of datasets, that of each split.

    A final report in the log is not taken: only the termination message of a pod that has ended is the end.
    """
    found: dict[str, Record] = {}
    for line in reversed(list(lines)):
        kind = _kind(line)  # a thousand lines of progress are not parsed for the sake of one
        if kind not in found and (record := report.parse(line)):
            found[kind] = record
    return tuple(sorted((r for r in found.values() if type(r) in _ORDER), key=lambda r: _ORDER.index(type(r))))


def _kind(line: str) -> str:
    """The kind of record that the line holds, from its prefix."""
    record, _, rest = line.partition(",")
    return f"{record},{rest.partition(',')[0]}" if record == _DATASET else record


_DATASET = '{"record":"dataset"'
