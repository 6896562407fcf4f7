"""When a job is reconciled: whenever something has changed, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from builders import Json, resource
from finetune_api.runtime.report import FinalReport
from finetune_operator.cache import Cache
from finetune_operator.cluster import Kind
from finetune_operator.errors import Refused, Unavailable, WebhookFailed
from finetune_operator.event_queue import EventQueue
from finetune_operator.identity import Key, key_of, version_of
from finetune_operator.metrics import REGISTRY
from finetune_operator.observe import CLAIM_SECONDS, NODES_FAILED_SECONDS, TERMINATION_POLL_SECONDS, Observer
from finetune_operator.progress import PodLog
from finetune_operator.reconcile import process
from finetune_operator.runtime import Operator
from finetune_operator.settings import Settings
from finetune_operator.status_change import StatusChange, merge_patch
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.backends.pytorchjob import PyTorchJobs
from finetune_plan.model import Observed, ObservedQueue
from finetune_plan.network_evidence import NodeClass, Nodes

KEY = Key("team", "sample")


def job(version: int, name: str = "sample", **status: str) -> Json:
    body = resource(name=name)
    body["metadata"] |= {"namespace": "team", "uid": f"uid-{name}", "generation": 1, "resourceVersion": str(version)}
    return body | {"status": dict(status)}


class Cluster:
    """One job and its run; every write is a new version."""

    def __init__(self) -> None:
        self.job, self.version, self.writes = job(1), 1, 0
        self.run: Json | None = None
        self.other = job(1, "other")
        self.queued: Json | None = None
        self.reads: list[str] = []
        """UIDs of runs whose Workload was asked for."""
        self.all_nodes: list[Json] = []
        self.node_reads = 0
        self.lists = 0
        self.found: list[Key] = []
        """Objects that were asked for by name."""

    def _write(self, body: Json) -> Json:
        self.version, self.writes = self.version + 1, self.writes + 1
        return body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}

    async def get_job(self, key: Key) -> Json | None:
        return self.job

    async def get_run(self, key: Key) -> Json | None:
        return self.run

    async def pages(self, kind: Kind, of: Key | None = None) -> AsyncIterator[tuple[list[Json], int]]:
        self.lists += 1
        yield ([self.job] if kind is Kind.JOBS else []), self.version

    async def read(self, kind: Kind, key: Key) -> Json | None:
        self.found.append(key)
        return self.job

    async def create_run(self, manifest: Json) -> Json:
        return self._write(manifest | {"metadata": manifest["metadata"] | {"uid": "uid-run"}})

    async def delete_run(self, key: Key, uid: str) -> Json | None:
        return None

    async def delete_pod(self, key: Key, uid: str, version: int) -> Json | None:
        return None

    async def patch_status(self, key: Key, patch: Json) -> Json:
        assert merge_patch(self.job["status"], patch["status"]), "a write that changes nothing"
        self.job = self._write(self.job | {"status": self.job["status"] | patch["status"]})
        return self.job

    async def workload(self, namespace: str, run_uid: str) -> Json | None:
        self.reads.append(run_uid)
        return self.queued

    async def claim(self, key: Key) -> Json | None:
        return None

    async def nodes(self, labels: Sequence[str]) -> AsyncIterator[Json]:
        self.node_reads += 1
        for raw in self.all_nodes:
            yield raw

    async def annotate_claim(self, key: Key, annotation: str, text: str) -> None:
        return

    async def read_log(self, key: Key, since_seconds: int | None) -> str:
        return ""

    async def create_event(self, event: Json) -> None:
        return

    async def write_heartbeat(self, key: Key, holder: str, time: str) -> None:
        return

    async def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        items = [self.job, self.other] if kind is Kind.JOBS else []
        yield {key_of(raw): version_of(raw) for raw in items}, self.version

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


def test_of_what_a_watch_missed_only_the_objects_that_differ_are_read() -> None:
    cluster = Cluster()
    operator = Operator(cluster, Settings(resync_seconds=0.01), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.other)
    asyncio.run(operator.compare_once())
    assert (cluster.found, cluster.lists) == ([KEY], 0), "whole objects may be large"
    assert operator.cache.job(KEY) is not None


class Unlisted(Cluster):
    """One kind cannot be listed, and no object read."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    async def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        if kind is self.kind:
            raise Refused(f"{kind} is forbidden")
        async for page in super().versions(kind):
            yield page


class Unread(Cluster):
    """A run was missed that cannot be read."""

    async def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        yield {Key("team", kind): 1} if kind in (Kind.RUNS, Kind.PODS) else {}, self.version

    async def read(self, kind: Kind, key: Key) -> Json | None:
        self.found.append(key)
        if kind is Kind.RUNS:
            raise Unavailable("no answer")
        return None


def test_what_a_watch_missed_is_repaired_although_another_kind_cannot_be_listed() -> None:
    for kind in (Kind.RUNS, Kind.EVENTS):
        cluster = Unlisted(kind)
        operator = Operator(cluster, Settings(resync_seconds=0.01), BACKEND)
        asyncio.run(operator.compare_once())
        assert set(cluster.found) == {KEY, Key("team", "other")}
    unread = Unread()
    asyncio.run(Operator(unread, Settings(resync_seconds=0.01), BACKEND).compare_once())
    assert unread.found == [Key("team", "runs"), Key("team", "pods")]


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


def ending_pod() -> Json:
    owner = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "job-1-1", "uid": "uid-run-1"}
    metadata = {"name": "job-1-1-worker-0", "namespace": "team", "uid": "uid-pod", "resourceVersion": "1",
                "labels": {"training.kubeflow.org/replica-index": "0"},
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [owner | {"controller": True}]}  # fmt: skip
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running"}}


def test_a_pod_whose_end_was_never_told_is_listed_although_its_run_stays() -> None:
    """The stream may have ended with 410 at that moment: what was deleted is in no list of the next one."""
    cluster, cache, clock = Cluster(), Cache(BACKEND), [0.0]
    observer = Observer(cluster, cache, Operator(cluster, Settings(), BACKEND).progress, Settings(), lambda: clock[0])
    cluster.version = 9
    cache.jobs.put(job(1, "job-1"))
    cache.runs.put(held(1))
    cache.pods.put(ending_pod())

    def pods() -> int:
        found = asyncio.run(observer.observe(Key("team", "job-1")))
        assert found is not None
        return len(found.pods)

    assert pods() == 1
    clock[0] = TERMINATION_POLL_SECONDS - 1
    assert (pods(), cluster.lists) == (1, 0), "most ends are told"
    clock[0] += 1
    assert pods() == 0


def held(number: int) -> Json:
    labels = {"finetune.dev/job-uid": f"uid-job-{number}", "finetune.dev/run": "1"}
    metadata = {"name": f"job-{number}-1", "namespace": "team", "uid": f"uid-run-{number}", "resourceVersion": "1"}
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "name": f"job-{number}",
             "uid": f"uid-job-{number}", "controller": True}  # fmt: skip
    return {
        "metadata": metadata | {"labels": labels, "ownerReferences": [owner]},
        "spec": {"runPolicy": {"suspend": True}},
    }


def test_a_claim_is_kept_for_a_moment_only() -> None:
    cluster, cache, clock = Cluster(), Cache(BACKEND), [0.0]
    observer = Observer(cluster, cache, Operator(cluster, Settings(), BACKEND).progress, Settings(), lambda: clock[0])
    for name, time, kept in (("one", 0.0, {"one"}), ("two", CLAIM_SECONDS / 2, {"one", "two"}),
                             ("three", CLAIM_SECONDS, {"two", "three"}), ("three", CLAIM_SECONDS, {"two", "three"}),
                             ("one", CLAIM_SECONDS * 9, {"one"})):  # fmt: skip
        clock[0] = time
        raw = job(1, name)
        raw["spec"]["output"] = {"uri": f"pvc://{name}/out"}
        cache.jobs.put(raw)
        asyncio.run(observer.observe(Key("team", name)))
        assert {claim.name for claim in cache.claims} == kept


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 10), (1000, 20)])
def test_why_a_job_is_queued_is_asked_the_less_often_the_more_jobs_are(jobs: int, seconds: float) -> None:
    cluster, cache, clock = Cluster(), Cache(BACKEND), [0.0]
    readers = Operator(cluster, Settings(), BACKEND).progress
    observer = Observer(cluster, cache, readers, Settings(), lambda: clock[0])
    for number in range(jobs):
        cache.jobs.put(job(1, f"job-{number}"))
        cache.runs.put(held(number))

    def queues() -> set[ObservedQueue]:
        found = (asyncio.run(observer.observe(Key("team", f"job-{number}"))) for number in range(jobs))
        return {each.queue for each in found if each}

    assert queues() == {ObservedQueue()}, "Kueue may not have seen the run yet"
    clock[0] = seconds - 1
    assert queues() == {ObservedQueue()}
    assert len(cluster.reads) == jobs
    clock[0] = seconds
    assert queues() == {ObservedQueue(managed=False)}
    cluster.queued = {"status": {"conditions": [UNMET]}}
    clock[0] = 2 * seconds
    assert queues() == {ObservedQueue("8 more needed")}
    assert len(cluster.reads) == 3 * jobs


UNMET = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "8 more needed"}


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
    assert list(operator.cache.pods.items()) == []


class Hanging(Cluster):
    """Its status is written, and the answer never comes."""

    async def patch_status(self, key: Key, patch: Json) -> Json:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_pass_that_takes_too_long_is_given_up_and_comes_again() -> None:
    operator = Operator(Hanging(), Settings(pass_seconds=0.05), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", job(1))
    key = operator.queue.take()
    assert key is not None
    asyncio.run(process(operator.queue, operator.reconciler, key))
    assert operator.queue.take() is None
    assert 0 < (operator.queue.wait_seconds() or 0) < 1, "a moment later"
    assert REGISTRY.get_sample_value("finetune_operator_reconcile_errors_total", {"reason": "TimedOut"}) == 1


def test_events_that_the_server_takes_slowly_hold_no_pass_and_too_many_are_dropped_and_counted() -> None:
    taken: list[Json] = []
    events = [
        {"reason": str(number), "involvedObject": {"namespace": "team", "name": "sample"}} for number in range(9)
    ]

    async def slow(event: Json) -> None:
        await asyncio.sleep(0.01)
        taken.append(event)
        if event["reason"] == "1":
            raise Refused("not now")

    async def play() -> None:
        queue = EventQueue(slow, most_waiting=4)
        for event in events:
            queue.put(event)
        writer = asyncio.create_task(queue.write())
        await queue.drained()
        writer.cancel()

    dropped = REGISTRY.get_sample_value("finetune_operator_dropped_events_total") or 0
    asyncio.run(play())
    assert taken == events[:4]
    assert REGISTRY.get_sample_value("finetune_operator_dropped_events_total") == dropped + 5 + 1


class Recording(Cluster):
    """Remembers events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Json] = []

    async def create_event(self, event: Json) -> None:
        self.events.append(event)


def test_a_job_whose_log_cannot_be_read_says_so_and_what_to_do() -> None:
    cluster = Recording()
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", job(1))
    for each in (KEY, Key("team", "gone")):
        operator.on_unreadable_log(PodLog(each, "sample-1-worker-0", "uid", "mute"), "get pods/log: no answer")

    async def write() -> None:
        writer = asyncio.create_task(operator.events.write())
        await operator.events.drained()
        writer.cancel()

    asyncio.run(write())
    [event] = cluster.events
    assert (event["reason"], event["involvedObject"]["name"]) == ("ProgressUnknown", "sample")
    assert event["message"] == (
        "The log of pod sample-1-worker-0 cannot be read, so progress is unknown: get pods/log: no answer. "
        "The job continues. Check the kubelet of node mute: `kubectl describe node mute`."
    )


class Owned(Cluster):
    """An object of the job has the name of its run, and is no run that can be read; deletions take their time."""

    def __init__(self) -> None:
        super().__init__()
        run = held(1)
        metadata = {"name": "sample-1", "labels": {"finetune.dev/run": "one"}}
        owner = run["metadata"]["ownerReferences"][0] | {"name": "sample", "uid": "uid-sample"}
        self.run = run | {"metadata": run["metadata"] | metadata | {"ownerReferences": [owner]}}

    async def delete_run(self, key: Key, uid: str) -> Json | None:
        return self.run


def passes(operator: Operator, most: int = 20) -> int:
    """Passes until none is due at once."""
    for number in range(most):
        key = operator.queue.take()
        if key is None:
            return number
        asyncio.run(process(operator.queue, operator.reconciler, key))
    return most


def test_an_own_object_that_is_no_run_and_has_its_name_is_said_and_waited_for() -> None:
    operator = Operator(Owned(), Settings(), BACKEND)
    assert isinstance(operator.cluster, Cluster)
    operator.on_event(Kind.JOBS, "ADDED", job(1))
    assert passes(operator) == 1
    operator.queue.add(KEY)
    assert passes(operator) == 1
    found = {c["type"]: c["reason"] for c in operator.cluster.job["status"]["conditions"]}
    assert found["PodsReady"] == "NameTaken"


def test_a_run_whose_label_was_edited_and_that_takes_long_to_go_is_deleted_without_a_hot_loop() -> None:
    cluster = Owned()
    run, cluster.run = cluster.run, None
    assert run is not None
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    assert passes(operator) == 2
    cluster.run = run | {"metadata": run["metadata"] | {"uid": "uid-run", "resourceVersion": "50"}}
    operator.on_event(Kind.RUNS, "MODIFIED", cluster.run)
    cluster.version = 60
    cluster.job = cluster._write(cluster.job | {"spec": cluster.job["spec"] | {"suspend": True}})
    operator.on_event(Kind.JOBS, "MODIFIED", cluster.job)
    assert passes(operator) <= 4


H200 = {"nvidia.com/gpu.product": "NVIDIA-H200", "node.coreweave.cloud/type": "x"}
TWO_NODES = {"compute.gpu_type": "H200", "compute.nodes": 2}


def node(name: str, efa: str, *, ready: str = "True", **spec: bool) -> Json:
    return {
        "metadata": {"name": name, "labels": {**H200, "kubernetes.io/hostname": name}}, "spec": spec,
        "status": {"allocatable": {"cpu": "64", "vpc.amazonaws.com/efa": efa},
                   "conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


def observed_nodes(
    settings: Settings, *specs: Json, cluster: Cluster | None = None
) -> tuple[Cluster, list[Observed], Callable[[], list[Observed]]]:
    """A cluster, what is observed of jobs without runs, and a way to observe them 50 s later."""
    cluster, cache, clock = cluster or Cluster(), Cache(BACKEND), [0.0]
    cluster.all_nodes = [
        node("a", "32"), node("b", "32"), node("c", "0"), node("d", "0", ready="False"),
        node("e", "0", ready="Unknown"), node("f", "0", unschedulable=True),
    ]  # fmt: skip
    observer = Observer(cluster, cache, Operator(cluster, settings, BACKEND).progress, settings, lambda: clock[0])
    for number, spec in enumerate(specs):
        cache.jobs.put(job(1, f"job-{number}") | {"spec": spec})

    def observe() -> list[Observed]:
        found = [asyncio.run(observer.observe(Key("team", f"job-{number}"))) for number in range(len(specs))]
        clock[0] += 50
        return [each for each in found if each]

    return cluster, observe(), observe


def test_nodes_are_read_for_jobs_that_need_them_once_for_all_of_them() -> None:
    spec = resource(TWO_NODES)["spec"]
    specs = ({**spec, "network": {"profile": "tcp"}}, spec, {**spec, "network": {"profile": "auto"}})
    cluster, found, again = observed_nodes(Settings(read_nodes=True), *specs)
    classes = (NodeClass(H200, frozenset({"vpc.amazonaws.com/efa"}), 2), NodeClass(H200))
    assert [each.nodes for each in found] == [None, Nodes(classes), Nodes(classes)], "none that takes no pods"
    assert cluster.node_reads == 1
    cluster.all_nodes = []
    assert [each.nodes for each in again()] == [None, Nodes(), Nodes()]
    assert cluster.node_reads == 2


def test_nodes_are_not_read_unless_a_setting_says_so() -> None:
    cluster, [found], _ = observed_nodes(Settings(), resource(TWO_NODES)["spec"])
    assert (found.nodes, cluster.node_reads) == (None, 0)


class Unlistable(Cluster):
    """Nodes cannot be listed."""

    async def nodes(self, labels: Sequence[str]) -> AsyncIterator[Json]:
        self.node_reads += 1
        for refusal in (Refused('cannot list resource "nodes"'),):
            raise refusal
        yield {}


class EndlessNodes(Cluster):
    """Lists of nodes do not end."""

    async def nodes(self, labels: Sequence[str]) -> AsyncIterator[Json]:
        self.node_reads += 1
        yield node("a", "32")
        await asyncio.sleep(1000)


UNREADABLE = {Unlistable: 'cannot list resource "nodes"', EndlessNodes: "no answer within 0.5 s"}
UNCONCERNED: dict[str, tuple[Json, Json]] = {
    "on CPUs": ({"compute.gpu_type": "CPU", "compute.gpu_count": None, "compute.nodes": 2}, {}),
    "on one node": ({}, {}),
    "with a profile": ({**TWO_NODES, "network.profile": "tcp"}, {}),
    "with a default": (TWO_NODES, {"default_networks": {"*": "tcp"}}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("case", UNCONCERNED)
def test_nodes_that_cannot_be_read_stop_no_other_job(kind: type[Cluster], case: str) -> None:
    changes, more = UNCONCERNED[case]
    cluster = kind()
    cluster.job |= {"spec": resource(changes)["spec"]}
    operator = Operator(cluster, Settings(read_nodes=True, **more), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    assert (cluster.job["status"]["run"], cluster.node_reads) == (1, 0)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_jobs_that_need_nodes_which_cannot_be_read_wait_and_ask_again(
    kind: type[Cluster],
) -> None:
    settings = Settings(read_nodes=True, pass_seconds=1)
    spec = resource(TWO_NODES)["spec"]
    cluster, found, again = observed_nodes(settings, spec, spec, cluster=kind())
    assert [each.nodes for each in found] == [Nodes(error=UNREADABLE[kind])] * 2
    assert cluster.node_reads == 1, "the failure is cached"
    assert NODES_FAILED_SECONDS < 50
    again()
    assert cluster.node_reads == 2
    cluster.job |= {"spec": spec}
    operator = Operator(cluster, settings, BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    [accepted] = [c for c in cluster.job["status"]["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("Unknown", "NetworkUndecided")
    assert f"The nodes cannot be read: {UNREADABLE[kind]}." in accepted["message"]


class Hooked(Cluster):
    """A webhook on claims fails."""

    async def annotate_claim(self, key: Key, annotation: str, text: str) -> None:
        raise WebhookFailed('failed calling webhook "pvc.example.org": connection refused')


def test_a_success_is_recorded_in_the_status_while_a_webhook_on_claims_fails() -> None:
    cluster = Hooked()
    changed = resource({"output.uri": "pvc://results/run1"}, name="sample")
    cluster.job |= {"spec": changed["spec"]}
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    report = FinalReport(time=1, exit_code=0, reason="Succeeded", message="done", step=7, result="/x", digest="d")
    ended = {"exitCode": 0, "finishedAt": "2026-01-01T00:10:00Z", "message": report.line()}
    pod = ending_pod()
    del pod["metadata"]["deletionTimestamp"]
    owner = pod["metadata"]["ownerReferences"][0] | {"name": "sample-1", "uid": "uid-run"}
    pod["metadata"] |= {"name": "sample-1-worker-0", "resourceVersion": "30", "ownerReferences": [owner],
                        "creationTimestamp": "2026-01-01T00:00:00Z"}  # fmt: skip
    pod["metadata"]["labels"] |= {"finetune.dev/job-uid": "uid-sample", "finetune.dev/run": "1"}
    pod["status"] = {"phase": "Succeeded",
                     "containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}]}  # fmt: skip
    operator.on_event(Kind.PODS, "ADDED", pod)
    passes(operator)
    assert cluster.job["status"]["phase"] == "Succeeded"


IMPOSSIBLE = ("99999-01-01T00:00:00Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "soon")
"""Most of them pass the API server as times."""
TARGET = {"type": "FailureTarget", "status": "True", "reason": "Killed", "message": "m"}
TIMED: dict[str, Callable[[str], Json]] = {
    "begun": lambda time: {"run": 1, "startTime": time},
    "bound to a node": lambda time: {"run": 1, "active": {"seconds": 1, "since": time}},
    "due": lambda time: {"run": 1, "retry": {"nextTime": time}},
    "doomed": lambda time: {"run": 1, "conditions": [TARGET | {"lastTransitionTime": time}]},
}
"""What a status says, at a time."""


@pytest.mark.parametrize("time", IMPOSSIBLE)
@pytest.mark.parametrize("case", TIMED)
def test_an_impossible_time_in_a_status_counts_as_absent_and_the_job_goes_on(case: str, time: str) -> None:
    cluster = Cluster()
    cluster.job |= {"status": {"phase": "Training", **TIMED[case](time)}}
    cluster.job["spec"] |= {"lifecycle": {"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 60}}
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    doomed = case == "doomed"
    assert cluster.job["status"]["phase"] == ("Failed" if doomed else "Starting")
    assert bool(operator.cache.children(cluster.job).runs) is not doomed, "the next run was created"


FAILED = {"type": "Failed", "status": "True", "reason": "Killed", "message": "m"}


@pytest.mark.parametrize("time", [*IMPOSSIBLE, "0001-01-01T00:00:00Z", "2026-01-01T00:00:00z"])
@pytest.mark.parametrize(
    ("conditions", "at"),
    [
        ([], "1970-01-01T00:00:00Z"),
        ([FAILED | {"lastTransitionTime": "2026-01-02T00:00:00Z"}], "2026-01-02T00:00:00Z"),
    ],
    ids=["no condition", "a condition"],
)
def test_a_job_that_ended_at_an_impossible_time_has_ended(time: str, conditions: list[Json], at: str) -> None:
    cluster = Cluster()
    cluster.job |= {"status": {"phase": "Failed", "run": 1, "completionTime": time, "conditions": conditions}}
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    assert (cluster.job["status"]["phase"], operator.cache.children(cluster.job).runs) == ("Failed", ())
    kept = operator.cache.job(KEY)
    assert kept is not None
    assert kept["status"]["completionTime"] == at


CREATING = {"type": "PodsReady", "status": "False", "reason": "Creating", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip


class Phases(Cluster):
    """Remembers the phases that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[str] = []

    async def patch_status(self, key: Key, patch: Json) -> Json:
        written = await super().patch_status(key, patch)
        self.phases.append(written["status"]["phase"])
        return written


@pytest.mark.parametrize(
    ("change", "phase"), [({"suspend": True}, "Stopping"), ({"cancel": True}, "Stopping"), ({}, "Queued")]
)
def test_the_pods_of_a_run_that_was_created_and_deleted_unseen_are_waited_for(change: Json, phase: str) -> None:
    """The operator died after it created the run, and somebody deleted the run before it came back."""
    cluster = Phases()
    cluster.job |= {"status": {"run": 1, "phase": "Starting", "conditions": [CREATING]}}
    cluster.job["spec"] |= change
    operator = Operator(cluster, Settings(), BACKEND)
    orphan = ending_pod()
    owner = orphan["metadata"]["ownerReferences"][0] | {"name": "sample-1"}
    orphan["metadata"] |= {"name": "sample-1-worker-0", "ownerReferences": [owner], "resourceVersion": "9"}
    orphan["metadata"]["labels"] |= {"finetune.dev/run": "1"}
    operator.on_event(Kind.PODS, "ADDED", orphan)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    found = {c["type"]: c["message"] for c in cluster.job["status"]["conditions"]}
    assert set(cluster.phases) == {phase}
    assert "pod sample-1-worker-0" in found["PodsReady"].lower()
    assert [*operator.cache.runs.items()] == [], "the next run waits"
    operator.on_event(Kind.PODS, "DELETED", orphan)
    passes(operator)
    ended = {"suspend": "Suspended", "cancel": "Cancelled"}
    assert cluster.job["status"]["phase"] == next((ended[key] for key in change), "Starting")


def test_a_job_that_is_nested_too_deeply_is_refused_by_its_key() -> None:
    """Where the admission policy is not installed."""
    deep: Json = {}
    for _ in range(600):
        deep = {"a": [deep]}
    cluster = Cluster()
    cluster.job["spec"] |= {"surprise": deep, "lora": {"r": deep}}
    operator = Operator(cluster, Settings(), BACKEND)
    operator.on_event(Kind.JOBS, "ADDED", cluster.job)
    passes(operator)
    found = {c["type"]: c for c in cluster.job["status"]["conditions"]}
    assert found["Accepted"]["reason"] in ("BadValue", "UnknownKey")
    assert "spec.surprise" in found["Accepted"]["message"]
    assert "spec.lora.r" in found["Accepted"]["message"]


SINCE = "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [
        ({}, {"active": {"seconds": 0, "since": SINCE}}, True),
        ({"active": {"seconds": 0, "since": SINCE}}, {"active": {"seconds": 10800}}, False),
        ({"active": {"seconds": 0, "since": SINCE}}, {"active": {"seconds": 10, "since": SINCE}}, True),
        ({}, {"active": {"seconds": 10}}, True),
    ],
)
def test_that_pods_have_gone_is_written_at_once(before: Json, after: Json, waits: bool) -> None:
    """Others may be bound before the next write: nobody would know any more when these had gone."""
    assert StatusChange(before, after).can_wait is waits
