"""Reads: a job, its runs, its pods and what rank 0 says, as one frozen Observed."""

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
from finetune_plan import results
from finetune_plan.decide import missing_pods
from finetune_plan.model import ClaimSeen, Observed, PodSeen

from . import metrics
from .cluster import Cluster, Kind
from .errors import ClusterError
from .identity import Json, Key, key_of
from .mirror import Mirror
from .settings import Settings

BACKEND_SECONDS = 5.0
"""How long an answer about the Training Operator's resource is believed."""
CLAIM_SECONDS = 1.0
"""How long a claim is believed: so long that a burst of jobs on one claim asks but once."""
LEAVING_SECONDS = 4.0
"""How long the end of a run is waited for before the server is asked: less than WAIT in finetune_plan/decide.py."""
OVERLAP_SECONDS = 5
"""Read twice rather than never: clocks of nodes differ."""
_ORDER = (DatasetRecord, ResumeRecord, ProgressRecord, EvaluationRecord, CheckpointRecord)


class Observer:
    """Remembers nothing but when it looked last."""

    def __init__(self, cluster: Cluster, mirror: Mirror, settings: Settings, clock: Callable[[], float]) -> None:
        self._cluster, self._mirror, self._settings, self._clock = cluster, mirror, settings, clock
        self._read: dict[str, float] = {}
        """When each rank 0, by UID of its pod, was read last."""
        self._backend: tuple[float, bool] | None = None
        self._leaving: dict[Key, float] = {}
        """When the children of jobs whose run is leaving were listed last, or seen to leave."""

    async def observe(self, key: Key, refusal: str = "") -> Observed | None:
        """What is known of a job now; None if there is none, or if it is being deleted and needs nothing."""
        job = self._mirror.job(key)
        if job is None or "deletionTimestamp" in job["metadata"]:
            return None
        uid = job["metadata"]["uid"]
        over = bool(job["status"].get("completionTime"))
        if not over and self._is_doubtful(key, job):
            await self._look_again(key.namespace, uid)
        runs, pods = self._mirror.runs.of(uid), self._mirror.pods.of(uid)
        return Observed(
            resource=job,
            runs=runs,
            pods=pods,
            records=() if over else await self._records(key, pods),
            backend=bool(runs) or over or await self.backend(),
            refusal=refusal,
            pods_refusal=next((said for r in runs if (said := self._mirror.refusals.of(r.uid))), ""),
            claim=ClaimSeen() if over or runs or job["status"].get("run") else await self._claim(key, job),
        )

    def progress_seconds(self) -> float:
        """Seconds between two reads of one job: more jobs, each less often."""
        reads = len(self._read) / self._settings.progress_reads_per_second
        return max(self._settings.progress_seconds, reads)

    @property
    def has_backend(self) -> bool:
        """Whether the Training Operator's resource existed when somebody asked last."""
        return self._backend is not None and self._backend[1]

    async def backend(self) -> bool:
        """Whether the Training Operator's resource exists."""
        now = self._clock()
        if self._backend is None or now - self._backend[0] >= BACKEND_SECONDS:
            self._backend = (now, await self._cluster.has_backend())
            metrics.BACKEND_MISSING.set(not self._backend[1])
        return self._backend[1]

    def doubt_backend(self) -> None:
        """The resource was missing when it was needed: ask again."""
        self._backend = None

    def _is_doubtful(self, key: Key, job: Json) -> bool:
        """Whether children are missing, or about to: that is told once, and a watch that starts anew never tells it.

        A gang that was whole is counted anew at once. For the end of a run we ask from time to time.
        """
        uid = job["metadata"]["uid"]
        runs, pods = self._mirror.runs.of(uid), self._mirror.pods.of(uid)
        if missing_pods(job["status"], pods):
            return True
        if not any(r.deleting for r in runs) and (runs or not pods):
            self._leaving.pop(key, None)
            return False
        now, asked = self._clock(), self._leaving.get(key)
        if asked is None or now - asked >= LEAVING_SECONDS:
            self._leaving[key] = now
        return asked is not None and now - asked >= LEAVING_SECONDS

    async def _look_again(self, namespace: str, uid: str) -> None:
        """Bring the children of one job up to date."""
        for kind in (Kind.RUNS, Kind.PODS):
            listed: set[Key] = set()
            async for items, version in self._cluster.pages(kind, namespace, uid):  # noqa: B007
                listed.update(map(key_of, items))
                for raw in items:
                    self._mirror.put(kind, raw)
            self._mirror.keep_of(kind, uid, listed, version)

    async def _claim(self, key: Key, job: Json) -> ClaimSeen:
        """The claim that the output of a new job lies on."""
        name = results.claim(job["spec"])
        if not name:
            return ClaimSeen()
        claim, now = Key(key.namespace, name), self._clock()
        read, known = self._mirror.claims.get(claim, (-CLAIM_SECONDS, ClaimSeen()))
        if now - read >= CLAIM_SECONDS:
            known = _claim_seen(await self._cluster.claim(claim) or {})
            self._mirror.claims[claim] = (now, known)
        return known

    async def _records(self, key: Key, pods: Iterable[PodSeen]) -> tuple[Record, ...]:
        """The newest record of each kind, if it is time to look."""
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
        except ClusterError:  # progress that cannot be read is unknown; the job goes on
            metrics.UNREADABLE_PROGRESS.inc()
            return ()
        return newest(text.splitlines())

    def forget(self, alive: set[str]) -> None:
        """Drop the reading times of pods that do not run any more, and what nobody believes any longer."""
        self._mirror.claims.clear()
        self._leaving.clear()
        self._read = {uid: at for uid, at in self._read.items() if uid in alive}


def _claim_seen(claim: Json) -> ClaimSeen:
    modes = claim.get("spec", {}).get("accessModes") or ()
    return ClaimSeen(claim.get("metadata", {}).get("annotations") or {}, tuple(modes))


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
    """What the line is a record of, by its first words."""
    record, _, rest = line.partition(",")
    return f"{record},{rest.partition(',')[0]}" if record == _DATASET else record


_DATASET = '{"record":"dataset"'
