"""Progress of running jobs: the logs of their first pods, read by tasks of its own, so that no pass waits for a node.

A read has one attempt and a few seconds. A node that does not answer is left alone for longer and longer, until it
reports a pod again, and never holds more than a few of the readers: it costs the progress of its own jobs and nothing
else.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from finetune_api.runtime import report
from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    ProgressRecord,
    Record,
    ResumeRecord,
)
from finetune_plan.model import ObservedPod

from . import metrics
from .cluster import Cluster
from .errors import ClusterError, Unavailable
from .identity import Key, log_fields
from .settings import Settings

log = logging.getLogger(__name__)

READS_PER_NODE = 2
"""Reads of one node's logs at once; one, after a failed one."""
BACKOFF = (10.0, 120.0)
"""Seconds for which a node is left alone after a failed read, and at most; doubled in between. At most two minutes:
five seconds of one reader for each, and a node that is back is soon noticed."""
UNREADABLE_SECONDS = 60.0
"""Seconds after which a job says that its progress is unknown: a kubelet may restart without a word."""
OVERLAP_SECONDS = 5
"""Read twice rather than never: clocks of nodes differ."""
_ORDER = (DatasetRecord, ResumeRecord, ProgressRecord, EvaluationRecord, CheckpointRecord)
_DATASET = '{"record":"dataset"'


class PodLog(NamedTuple):
    """The log of a job's first pod."""

    job: Key
    pod: str
    uid: str
    node: str


@dataclass(slots=True)
class _Node:
    reading: int = 0
    """Reads under way."""
    waiting: list[PodLog] = field(default_factory=list)
    """Logs that are due and wait for one of these reads to end."""
    failures: int = 0
    """In a row."""
    failing_since: float = 0.0
    retry_at: float = 0.0
    reported: set[PodLog] = field(default_factory=set)


class ReadSchedule:
    """Which log is read next, and when. It has no task and no timer, so that a test controls the clock.

    Each log is read at once, and again `interval(number of logs)` seconds after each read; but never during its
    node's back-off, nor while as many others of its node are read as may be.
    """

    def __init__(self, clock: Callable[[], float], interval: Callable[[int], float]) -> None:
        self._clock, self._interval = clock, interval
        self._logs: dict[Key, PodLog] = {}
        self._read: dict[PodLog, float] = {}
        """When each log was read last with success."""
        self._due: dict[PodLog, float] = {}
        self._heap: list[tuple[float, PodLog]] = []
        """Times of _due, and older ones that no longer count."""
        self._nodes: dict[str, _Node] = {}
        self._abandoned: set[PodLog] = set()
        """Logs of pods that their node has ceased to report."""

    def follow(self, source: PodLog, *, abandoned: bool = False) -> None:
        """Read this log of its job from now on, and no other. A node that reports the pod for the first time, or
        again after it was abandoned, is alive: its back-off ends."""
        reported = not self.follows(source) or source in self._abandoned
        if not self.follows(source):
            self.forget(source.job)
            self._logs[source.job] = source
            self._plan(source, self._clock())
        if abandoned:
            self._abandoned.add(source)
        elif reported:
            self._abandoned.discard(source)
            self._end_back_off(source.node)

    def forget(self, job: Key) -> None:
        """The job has no log to be read."""
        if known := self._logs.pop(job, None):
            self._due.pop(known, None)
            self._read.pop(known, None)
            self._abandoned.discard(known)

    def follows(self, source: PodLog) -> bool:
        """Whether this log is the one of its job that is read."""
        return self._logs.get(source.job) == source

    def take(self) -> PodLog | None:
        """A log that is due, or None. done() must follow."""
        while self.wait_seconds() == 0:
            _, found = heapq.heappop(self._heap)
            del self._due[found]
            node = self._nodes.setdefault(found.node, _Node())
            if node.retry_at > self._clock():
                self._plan(found, node.retry_at)
            elif node.reading >= (1 if node.failures else READS_PER_NODE):
                node.waiting.append(found)
            else:
                node.reading += 1
                return found
        return None

    def since_seconds(self, source: PodLog) -> int | None:
        """How far back a read has to go; None: to the beginning."""
        read = self._read.get(source)
        return None if read is None else int(self._clock() - read) + OVERLAP_SECONDS

    def done(self, source: PodLog, started: float, *, read: bool, node_failed: bool = False) -> None:
        """The read is over; when the node failed, all its logs wait. It may be neither's fault, but the pod's."""
        node, now = self._nodes[source.node], self._clock()
        node.reading -= 1
        if node_failed:
            node.failing_since = node.failing_since if node.failures else now
            node.retry_at = now + min(BACKOFF[1], BACKOFF[0] * 2 ** min(node.failures, 10))
            node.failures += 1
        elif read and node.failures:
            self._nodes[source.node] = node = _Node(node.reading, node.waiting)
        waiting, node.waiting = node.waiting, []
        for each in waiting:
            self._plan(each, now)
        self._plan(source, now + self._interval(len(self._logs)))
        if read and source in self._due:
            self._read[source] = started
        if not node.reading and not node.failures:
            del self._nodes[source.node]

    def wait_seconds(self) -> float | None:
        """Seconds until the next log is due, 0 if one is; None: nothing is planned."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock()) if self._heap else None

    def back_off_seconds(self, node: str) -> float:
        """Seconds for which a node is left alone."""
        return max(0.0, self._nodes[node].retry_at - self._clock()) if node in self._nodes else 0.0

    def is_unreadable(self, node: str) -> bool:
        """Whether nothing could be read from a node for long."""
        known = self._nodes.get(node)
        return bool(known and known.failures and self._clock() - known.failing_since >= UNREADABLE_SECONDS)

    def unreported(self, node: str) -> list[PodLog]:
        """Logs of an unreadable node, each once."""
        known = self._nodes[node].reported if node in self._nodes else set()
        found = [each for each in self._logs.values() if each.node == node and each not in known]
        known.update(found)
        return found

    def unreadable_nodes(self) -> int:
        """Nodes whose last read failed."""
        return sum(node.failures > 0 for node in self._nodes.values())

    def keep(self, jobs: Container[Key]) -> None:
        """Forget all other jobs, and nodes without one."""
        for job in [each for each in self._logs if each not in jobs]:
            self.forget(job)
        used = {each.node for each in self._logs.values()}
        self._nodes = {name: n for name, n in self._nodes.items() if name in used or n.reading}

    def _end_back_off(self, node: str) -> None:
        """All logs of the node are due. Its failures count until one is read: one read at once, and a long back-off
        again if that fails."""
        if self.back_off_seconds(node):
            self._nodes[node].retry_at = self._clock()
            for each in [each for each in self._due if each.node == node]:
                self._plan(each, self._clock())

    def _plan(self, source: PodLog, due: float) -> None:
        if self.follows(source):
            self._due[source] = due
            heapq.heappush(self._heap, (due, source))


class ProgressReaders:
    """The newest records of each running job that no pass has taken yet."""

    def __init__(
        self, cluster: Cluster, settings: Settings, clock: Callable[[], float], changed: Callable[[Key], None],
        unreadable: Callable[[PodLog, str], None],
    ) -> None:  # fmt: skip
        self._cluster, self._settings, self._clock = cluster, settings, clock
        self._changed, self._unreadable = changed, unreadable
        self.schedule = ReadSchedule(clock, self._interval)
        self._records: dict[Key, tuple[str, tuple[Record, ...]]] = {}
        """By job: UID of the pod, and the newest record of each kind."""
        self._turn, self._wake = asyncio.Lock(), asyncio.Event()

    def follow(self, job: Key, pod: ObservedPod) -> tuple[Record, ...]:
        """Read the log of a pod from now on. What was read of it since the last pass that took it."""
        self.schedule.follow(PodLog(job, pod.name, pod.uid, pod.node), abandoned=pod.abandoned)
        self._wake.set()
        uid, records = self._records.get(job, ("", ()))
        return records if uid == pod.uid else ()

    def forget(self, job: Key) -> None:
        """The job has no log to be read."""
        self.schedule.forget(job)
        self._records.pop(job, None)

    def taken(self, job: Key, records: tuple[Record, ...]) -> None:
        """These records are in the status, or not needed."""
        if records and self._records.get(job, ("", ()))[1] is records:
            del self._records[job]

    def keep(self, jobs: Container[Key]) -> None:
        """Forget all other jobs."""
        self.schedule.keep(jobs)
        self._records = {job: found for job, found in self._records.items() if job in jobs}

    async def read(self) -> None:
        """Read one log after the other. settings.progress_readers of these run concurrently."""
        while True:
            async with self._turn:  # one waits for what is due, the others for it
                found = await self._next()
            await self._read(found)
            self._wake.set()  # what has waited for this read may be due

    async def _next(self) -> PodLog:
        while (found := self.schedule.take()) is None:
            self._wake.clear()
            try:
                async with asyncio.timeout(self.schedule.wait_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                continue
        return found

    async def _read(self, found: PodLog) -> None:
        started, since = self._clock(), self.schedule.since_seconds(found)
        try:
            text = await self._cluster.read_log(Key(found.job.namespace, found.pod), since)
            records = newest(text.splitlines())
        except ClusterError as error:  # progress that cannot be read is unknown; the job continues
            await self._failed(found, started, error)
        except Exception:  # a bug that one log triggers must not stop the others
            metrics.UNREADABLE_PROGRESS.inc()
            self.schedule.done(found, started, read=False)
            log.exception("progress not read", extra=_fields(found))
        else:
            self.schedule.done(found, started, read=True)
            self._put(found, records)

    async def _failed(self, found: PodLog, started: float, error: ClusterError) -> None:
        """Only what the server could not get from the node is the node's failure."""
        metrics.UNREADABLE_PROGRESS.inc()
        self.schedule.done(found, started, read=False, node_failed=isinstance(error, Unavailable))
        seconds = self.schedule.back_off_seconds(found.node)
        log.warning("progress not read", extra=_fields(found) | {"error": str(error), "seconds": seconds})
        if self.schedule.is_unreadable(found.node) and await self._server_answers(found.job):
            for each in self.schedule.unreported(found.node):
                self._unreadable(each, str(error))

    async def _server_answers(self, job: Key) -> bool:
        """Whether the server itself answers; otherwise nothing is known of the node."""
        try:
            return await self._cluster.get_job(job) is not None
        except ClusterError:
            return False

    def _put(self, found: PodLog, records: tuple[Record, ...]) -> None:
        if not records or not self.schedule.follows(found):
            return
        uid, known = self._records.get(found.job, ("", ()))
        self._records[found.job] = (found.uid, merged(known, records) if uid == found.uid else records)
        self._changed(found.job)

    def _interval(self, logs: int) -> float:
        """Seconds between two reads of one log: more jobs, each less often."""
        return max(self._settings.progress_seconds, logs / self._settings.progress_reads_per_second)


def _fields(found: PodLog) -> dict[str, object]:
    return log_fields(found.job) | {"pod": found.pod, "node": found.node}


def newest(lines: Iterable[str]) -> tuple[Record, ...]:
    """The last record of each kind, in the order in which a run makes them; of datasets, that of each split.

    A final report in the log is not taken: only the termination message of a pod that has ended is the end.
    """
    found: dict[str, Record] = {}
    for line in reversed(list(lines)):
        kind = _kind(line)  # a thousand lines of progress are not parsed for the sake of one
        if kind not in found and (record := report.parse(line)):
            found[kind] = record
    return _ordered(r for r in found.values() if type(r) in _ORDER)


def merged(older: Iterable[Record], newer: Iterable[Record]) -> tuple[Record, ...]:
    """The last record of each kind of two reads of one log."""
    found = {_sort(record): record for record in (*older, *newer)}
    return _ordered(found.values())


def _ordered(records: Iterable[Record]) -> tuple[Record, ...]:
    return tuple(sorted(records, key=lambda r: _ORDER.index(type(r))))


def _sort(record: Record) -> tuple[type[Record], str]:
    return type(record), record.split if isinstance(record, DatasetRecord) else ""


def _kind(line: str) -> str:
    """The kind of record that the line holds, from its prefix."""
    record, _, rest = line.partition(",")
    return f"{record},{rest.partition(',')[0]}" if record == _DATASET else record
