"""When a job is reconciled: whenever something has changed, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from builders import Json, resource
from finetune_operator.cluster import Kind
from finetune_operator.identity import Key, key_of, version_of
from finetune_operator.reconcile import process
from finetune_operator.runtime import Operator
from finetune_operator.settings import Settings
from finetune_operator.status_change import merge_patch
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.backends.pytorchjob import PyTorchJobs

KEY = Key("team", "sample")


def job(version: int, name: str = "sample", **status: str) -> Json:
    body = resource(name=name)
    body["metadata"] |= {"namespace": "team", "uid": f"uid-{name}", "generation": 1, "resourceVersion": str(version)}
    return body | {"status": dict(status)}


class Cluster:
    """One job and its run; every write is a new version."""

    def __init__(self) -> None:
        self.job, self.run, self.version, self.writes = job(1), None, 1, 0

    def _write(self, body: Json) -> Json:
        self.version, self.writes = self.version + 1, self.writes + 1
        return body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}

    async def get_job(self, key: Key) -> Json | None:
        return self.job

    async def get_run(self, key: Key) -> Json | None:
        return self.run

    async def pages(self, kind: Kind, namespace: str = "", uid: str = "") -> AsyncIterator[tuple[list[Json], int]]:
        yield ([self.job] if kind is Kind.JOBS else []), self.version

    async def create_run(self, manifest: Json) -> Json:
        return self._write(manifest | {"metadata": manifest["metadata"] | {"uid": "uid-run"}})

    async def delete_run(self, key: Key, uid: str) -> Json | None:
        return None

    async def patch_status(self, key: Key, patch: Json) -> Json:
        assert merge_patch(self.job["status"], patch["status"]), "a write that changes nothing"
        self.job = self._write(self.job | {"status": self.job["status"] | patch["status"]})
        return self.job

    async def claim(self, key: Key) -> Json | None:
        return None

    async def annotate_claim(self, key: Key, annotation: str, text: str) -> None:
        return

    async def read_log(self, key: Key, since_seconds: int | None) -> str:
        return ""

    async def create_event(self, event: Json) -> None:
        return

    async def write_heartbeat(self, key: Key, holder: str, time: str) -> None:
        return

    async def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        async for items, version in self.pages(kind):
            yield {key_of(raw): version_of(raw) for raw in items}, version

    async def serves(self, kind: Kind) -> bool:
        return True


@pytest.fixture
def operator() -> Operator:
    return Operator(Cluster(), Settings(progress_seconds=10, progress_reads_per_second=50), BACKEND)


def due(operator: Operator) -> Key | None:
    """The job that is due, if any; it is taken and put back done."""
    key = operator.queue.take()
    if key:
        operator.queue.done(key)
    return key


@pytest.mark.parametrize(
    ("event", "version", "looked_at"),
    [
        ("MODIFIED", 6, True),
        ("MODIFIED", 5, False),
        ("ADDED", 4, False),
        (None, 5, False),
        (None, 6, True),
        ("DELETED", 6, True),
    ],
)
def test_only_what_is_newer_than_the_known_version_5_calls_for_a_look(
    operator: Operator, event: str | None, version: int, looked_at: bool
) -> None:
    operator.on_event(Kind.JOBS, "ADDED", job(5))
    assert due(operator) == KEY
    operator.on_event(Kind.JOBS, event, job(version))
    assert due(operator) == (KEY if looked_at else None)


def test_what_only_a_sweep_has_found_is_looked_at(operator: Operator) -> None:
    operator.synced.set()
    ended = job(1, phase="Succeeded", completionTime="2026-01-01T00:00:00Z")
    assert isinstance(operator.cluster, Cluster)
    operator.cluster.job = ended
    asyncio.run(operator.resync_once())
    assert due(operator) == KEY, "the first time it is news"
    asyncio.run(operator.resync_once())
    assert due(operator) is None, "a job that has ended and is known is left alone"


def test_a_look_that_wrote_is_followed_by_one_that_does_not_and_no_echo_is_needed(operator: Operator) -> None:
    assert isinstance(operator.cluster, Cluster)
    operator.on_event(Kind.JOBS, "ADDED", operator.cluster.job)
    looks = 0
    while key := operator.queue.take():
        asyncio.run(process(operator.queue, operator.reconciler, key))
        looks += 1
    assert (looks, operator.cluster.writes) == (2, 2), "the status and the run, and then a look at both"
    operator.on_event(Kind.JOBS, "MODIFIED", operator.cluster.job)
    assert due(operator) is None, "the echo of our own write is no news"


@pytest.mark.parametrize(("others", "seconds"), [(1, 10), (1000, 20)])
def test_words_wait_the_longer_the_more_jobs_are_unfinished(operator: Operator, others: int, seconds: float) -> None:
    assert isinstance(operator.cluster, Cluster)
    for number in range(1, others):
        operator.cache.jobs.put(job(1, f"job-{number}", phase="Queued"))
    for number in range(5000):
        operator.cache.jobs.put(job(1, f"ended-{number}", phase="Succeeded"))
    operator.on_event(Kind.JOBS, "ADDED", operator.cluster.job)
    while key := operator.queue.take():
        asyncio.run(process(operator.queue, operator.reconciler, key))
    wait = operator.queue.wait_seconds()
    assert wait == pytest.approx(seconds, abs=1)
    assert operator.cache.phases() == {"Starting": 1, "Succeeded": 5000} | ({"Queued": 999} if others > 1 else {})


class Broken(PyTorchJobs):
    """A backend with a bug."""

    broken = True

    def render(self, *arguments: Any, **options: Any) -> Json:
        if self.broken:
            raise ZeroDivisionError("division by zero")
        return super().render(*arguments, **options)


def test_a_job_that_the_operator_fails_on_says_so_once_and_goes_on_when_it_can() -> None:
    cluster, backend = Cluster(), Broken()
    operator = Operator(cluster, Settings(), backend)
    asyncio.run(operator.resync_once())

    def ready() -> Json:
        key = operator.queue.take()
        asyncio.run(process(operator.queue, operator.reconciler, KEY if key is None else key))
        operator.queue.add(KEY)
        found: Json = next(c for c in cluster.job["status"]["conditions"] if c["type"] == "Ready")
        return found

    assert {ready()["reason"] for _ in range(3)} == {"InternalError"}
    assert "ZeroDivisionError: division by zero. This is a bug; please report it" in ready()["message"]
    assert (cluster.writes, cluster.run) == (1, None), "a failure that repeats is written once"
    backend.broken = False
    assert ready()["reason"] == "NotFinished"


@pytest.mark.parametrize(
    "labels", [{"finetune.dev/run": "x"}, {"finetune.dev/run": "9" * 63}, {"finetune.dev/run": "-1"}]
)
def test_a_pod_with_odd_labels_harms_nobody(operator: Operator, labels: Json) -> None:
    metadata = {"name": "odd", "namespace": "team", "uid": "u", "resourceVersion": "9"}
    pod = {"metadata": metadata | {"labels": {"finetune.dev/job-uid": "uid-sample", **labels}}, "status": {}}
    operator.on_event(Kind.PODS, "ADDED", pod)
    assert [found.run for found in operator.cache.pods.of("uid-sample")] == [0]
