"""Whose an object is: its namespace, its chain of controllers and its name say so, never a label alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import Json, resource
from finetune_api.resource import names
from finetune_api.runtime.exits import Exit
from finetune_operator import metrics
from finetune_operator.cache import Cache
from finetune_operator.cluster import Kind
from finetune_operator.identity import Key
from finetune_operator.malformed import MOST_OF_JOB
from finetune_operator.refusal_events import MOST_EARLY
from finetune_operator.transform import SENTENCE_LENGTH
from finetune_plan.backends import DEFAULT as BACKEND
from operating.team import report

KEY = Key("team", "sample")
LABELS = {names.JOB_LABEL: "sample", names.JOB_UID_LABEL: "uid-job", names.RUN_LABEL: "1"}
versions = itertools.count(1)


def metadata(name: str, uid: str, labels: Json, owner: Json | None) -> Json:
    found = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(next(versions)), "labels": labels}
    return found | ({"ownerReferences": [owner | {"controller": True}]} if owner else {})


def job(status: Json | None = None) -> Json:
    body = resource() | {"status": status or {"run": 1}}
    return body | {"metadata": metadata("sample", "uid-job", {}, None)}


def run(change: Json | None = None) -> Json:
    owner = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "sample", "uid": "uid-job"}
    return {"kind": "PyTorchJob", "metadata": metadata("sample-1", "uid-run", LABELS, owner) | (change or {})}


OWNER = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "sample-1", "uid": "uid-run"}


def pod(change: Json | None = None, owner: Json | None = OWNER, rank: str = "0") -> Json:
    labels = LABELS | {"training.kubeflow.org/replica-index": rank}
    ended = {"exitCode": 0, "message": report(Exit.OK, "done").line()}
    status = {"phase": "Succeeded", "containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}]}
    return {"kind": "Pod", "metadata": metadata("sample-1-worker-0", "uid-pod", labels, owner) | (change or {}),
            "status": status}  # fmt: skip


def filled(*objects: Json) -> Cache:
    cache, kinds = Cache(BACKEND), {"FinetuneJob": Kind.JOBS, "PyTorchJob": Kind.RUNS, "Pod": Kind.PODS}
    for each in objects:
        cache.put(kinds[each["kind"]], each)
    return cache


def children(cache: Cache, of: Json | None = None) -> tuple[list[str], list[str]]:
    found = cache.children(of or job())
    return [each.name for each in found.runs], [each.name for each in found.pods]


BOTH = (["sample-1"], ["sample-1-worker-0"])


@pytest.mark.parametrize("order", list(itertools.permutations(("job", "run", "pod"))))
def test_a_run_and_its_pod_are_the_jobs_in_whatever_order_they_arrive(order: tuple[str, ...]) -> None:
    objects = {"job": job(), "run": run(), "pod": pod()}
    cache = filled(*(objects[name] for name in order))
    assert children(cache) == BOTH
    [found] = cache.children(job()).pods
    assert found.report is not None


FOREIGN_PODS = {
    "a pod with our labels and no owner": pod(owner=None),
    "a pod in another namespace": pod({"namespace": "other"}),
    "a pod of another run of that name": pod(owner=OWNER | {"uid": "uid-other"}),
    "a pod of a run that does not exist": pod(owner=OWNER | {"name": "sample-99"}),
    "a pod of another kind of owner": pod(owner=OWNER | {"kind": "ReplicaSet", "apiVersion": "apps/v1"}),
    "a pod of a kind of another group": pod(owner=OWNER | {"apiVersion": "example.org/v1"}),
    "a pod with a name of its own": pod({"name": "stranger"}),
    "a pod with the name of another rank": pod({"name": "sample-1-worker-1"}),
    "a pod whose rank is no number": pod({"name": "sample-1-worker-1"}, rank="one"),
    "a pod that the run does not control": pod({"ownerReferences": [OWNER]}),
    "a pod whose owners are no list of owners": pod({"ownerReferences": [7]}),
}


@pytest.mark.parametrize("foreign", FOREIGN_PODS.values(), ids=list(FOREIGN_PODS))
def test_a_foreign_pod_is_not_the_jobs(foreign: Json) -> None:
    assert children(filled(job(), run(), foreign)) == (["sample-1"], [])


def _owned(**change: Any) -> Json:
    return {"ownerReferences": [run()["metadata"]["ownerReferences"][0] | change]}


FOREIGN_RUNS = {
    "a copy with our labels": run({"ownerReferences": []}),
    "a copy under another name, its owner included": run({"name": "copy"}),
    "a run in another namespace": run({"namespace": "other"}),
    "a run of an earlier job of that name": run(_owned(uid="uid-old")),
    "a run of another kind of job": run(_owned(kind="OtherJob")),
    "a run of another group's FinetuneJob": run(_owned(apiVersion="example.org/v1")),
    "a run that the job does not control": run(_owned(controller=False)),
    "a run whose number is not that of its name": run({"labels": LABELS | {names.RUN_LABEL: "99"}}),
    "a run without labels": run({"labels": None}),
}


@pytest.mark.parametrize("foreign", FOREIGN_RUNS.values(), ids=list(FOREIGN_RUNS))
def test_a_foreign_run_is_not_the_jobs_nor_are_its_pods(foreign: Json) -> None:
    first = {"conditions": [_ready("Creating")], "run": 1}
    assert children(filled(job(first), foreign, pod()), job(first)) == ([], [])


def _ready(reason: str) -> Json:
    time = "2026-01-01T00:00:00Z"
    return {"type": "PodsReady", "status": "False", "reason": reason, "message": "m", "lastTransitionTime": time}


def test_pods_that_outlive_their_run_hold_back_the_next_one_and_prove_nothing() -> None:
    seen = job({"run": 1, "conditions": [_ready("Running")]})
    [left] = filled(seen, pod()).children(seen).pods
    assert (left.run, left.report, left.exit_code) == (1, None, None)


def _labelled(run: Json, name: str = "sample-1") -> Json:
    labels = {"training.kubeflow.org/replica-index": "0"} | run
    return pod({"name": f"{name}-worker-0", "labels": labels}, OWNER | {"name": name})


STRANGERS = {
    "of a PyTorchJob without our labels": _labelled({}),
    "of a copy of another run": _labelled(LABELS | {names.RUN_LABEL: "3"}),
    "of a PyTorchJob with a number that no run has": _labelled({}, "sample-0"),
}


@pytest.mark.parametrize("status", [{}, {"run": 1, "conditions": [_ready("Running")]}], ids=["new", "seen"])
@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=list(STRANGERS))
def test_pods_of_a_persons_own_pytorchjob_hold_no_job_back(stranger: Json, status: Json) -> None:
    cache = filled(job(status), stranger)
    assert [*cache.predecessors(job(status)).pods, *cache.children(job(status)).pods] == []


def test_what_the_label_of_a_pod_says_of_its_run_does_not_count() -> None:
    stranger = pod({"labels": {**LABELS, names.RUN_LABEL: "99", "training.kubeflow.org/replica-index": "0"}})
    assert [each.run for each in filled(job(), run(), stranger).children(job()).pods] == [1]


def test_nothing_is_kept_of_objects_that_are_nobodys() -> None:
    cache = Cache(BACKEND)
    for number in range(1000):
        cache.put(Kind.PODS, pod({"name": f"p{number}"}, owner=None))
        cache.drop(Kind.PODS, pod({"name": f"p{number}"}, owner=None))
    assert [*cache.pods.items(), *cache.pods._gone] == []


def test_of_a_huge_pod_little_is_kept() -> None:
    huge = pod()
    huge["status"] = {
        "phase": "Pending", "reason": "x" * 10**6,
        "conditions": [{"type": f"c{n}", "status": "True", "reason": "r" * 1000} for n in range(1000)]
        + [{"type": "PodScheduled", "status": "False", "reason": "x" * 10**6, "message": "y" * 10**6}],
        "containerStatuses": [{"name": f"c{n}", "state": {}} for n in range(5000)]
        + [{"name": "pytorch", "state": {"terminated": {"exitCode": 1, "message": '{"record":' + "[" * 10**6}}}],
    }  # fmt: skip
    [found] = filled(job(), run(), huge).children(job()).pods
    assert len(repr(found)) < 2 * SENTENCE_LENGTH


# Malformed objects


def skipped(kind: str) -> float:
    return metrics.REGISTRY.get_sample_value("finetune_operator_malformed_objects_total", {"kind": kind}) or 0.0


def test_a_malformed_object_of_a_job_is_counted_once_for_each_version_and_is_to_be_reported() -> None:
    cache, before, copy = filled(job()), skipped("runs"), run({"name": "copy"})
    assert [cache.put(Kind.RUNS, copy), cache.put(Kind.RUNS, copy)] == [True, False]
    assert cache.subject(Kind.RUNS, copy) == KEY
    assert skipped("runs") == before + 1
    [told] = cache.skipped.take(KEY)
    assert told.what == "PyTorchJob copy"
    assert "its name and its label finetune.dev/run are not those of a run" in told.why
    assert cache.skipped.take(KEY) == []


def test_what_is_said_of_a_malformed_object_repeats_none_of_its_values() -> None:
    odd = pod()
    odd["status"] = {"phase": {"token": "hf_secret"}, "containerStatuses": [{"hf_secret": 1}]}
    cache = filled(job(), run(), odd)
    assert "hf_secret" not in repr(cache.skipped.take(KEY))


def test_a_flood_of_malformed_objects_makes_few_events() -> None:
    cache = filled(job(), *(run({"name": f"copy-{n}"}) for n in range(100)))
    assert len(cache.skipped.take(KEY)) == MOST_OF_JOB


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["sample-1", "True"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from([
            "name", "namespace", "uid", "labels", "ownerReferences", "controller", "kind", "resourceVersion", "phase",
            "conditions", "containerStatuses", "state", "terminated", "message", "type", "status", "spec", "reason",
            "involvedObject", "source", "component", *LABELS,
        ]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
parts = st.dictionaries(st.sampled_from(["metadata", "status", "spec", "involvedObject", "source"]), anything)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(kind=st.sampled_from([Kind.JOBS, Kind.RUNS, Kind.PODS]), odd=parts, inner=parts)
def test_nothing_that_anybody_writes_raises_or_hides_the_jobs_own(kind: Kind, odd: Json, inner: Json) -> None:
    cache = filled(job(), run(), pod())
    whole = {Kind.JOBS: job, Kind.RUNS: run, Kind.PODS: pod}[kind]()
    for raw in (odd, *({**whole, key: value} for key, value in odd.items())):
        named = raw | {"metadata": {**whole["metadata"], "name": "odd", **_dict(inner.get("metadata"))}}
        for each in (raw, named):
            if each.get("metadata") != whole["metadata"]:
                cache.put(kind, each)
                cache.subject(kind, each)
                cache.drop(kind, each) if each is raw else None
        cache.refusals.on_event("ADDED", raw)
        cache.refusals.on_event("DELETED", raw)
    assert cache.children(job()).runs


def _dict(value: Any) -> Json:
    return {k: v for k, v in value.items() if k not in ("name", "uid")} if isinstance(value, dict) else {}


# Refusals


def refusal(about: Json | None = None, **change: Any) -> Json:
    target = {"kind": "PyTorchJob", "name": "sample-1", "uid": "uid-run"} | (about or {})
    return {"metadata": {"name": "event", "namespace": "team"}, "involvedObject": target, "message": "exceeded quota",
            "source": {"component": "pytorchjob-controller"}} | change  # fmt: skip


def said(cache: Cache) -> str:
    return cache.refusals.of(Key("team", "sample-1"), "uid-run")


def test_a_refusal_counts_whether_it_or_its_run_arrives_first() -> None:
    cache = filled(job())
    assert cache.refusals.on_event("ADDED", refusal()) is None
    cache.put(Kind.RUNS, run())
    assert said(cache) == "exceeded quota"
    cache.refusals.keep()
    assert said(cache) == "exceeded quota"
    assert cache.refusals.on_event("MODIFIED", refusal(message="forbidden")) == KEY
    assert cache.refusals.on_event("MODIFIED", refusal(message="forbidden")) is None, "that is no news"
    assert cache.refusals.on_event("DELETED", refusal()) == KEY
    assert said(cache) == ""


FOREIGN_EVENTS = {
    "of another namespace": refusal(metadata={"name": "event", "namespace": "other"}),
    "about another object of that name": refusal({"uid": "uid-other"}),
    "about another kind": refusal({"kind": "Pod"}),
    "of somebody else": refusal(source={"component": "kubectl"}),
    "of nobody": refusal(source=None),
    "about nothing": refusal(involvedObject={}),
    "whose message is a number": refusal(message=7),
}


@pytest.mark.parametrize("event", FOREIGN_EVENTS.values(), ids=list(FOREIGN_EVENTS))
def test_a_foreign_event_says_nothing_about_a_run(event: Json) -> None:
    cache = filled(job(), run())
    assert cache.refusals.on_event("ADDED", event) is None
    assert said(cache) == ""


def test_a_flood_of_events_is_bounded_and_hides_no_refusal() -> None:
    cache = filled(job(), run())
    cache.refusals.on_event("ADDED", refusal())
    for number in range(10_000):
        cache.refusals.on_event("ADDED", refusal({"name": f"no-{number}"}, message="x" * 10_000))
    assert said(cache) == "exceeded quota"
    assert len(cache.refusals._early) == MOST_EARLY
    assert max(len(each.message) for each in cache.refusals._early.values()) == SENTENCE_LENGTH
