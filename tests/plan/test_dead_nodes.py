"""Pods on nodes that do not answer: how long they stay, who is told what, and when they are deleted by force."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from builders import Json
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import POLL_SECONDS, plan
from finetune_plan.model import CreateRun, DeletePod, ObservedPod, ObservedRun, Plan
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload
from plan.situations import NOW, RUN1, accepted, condition, decided, pod, seen, written

LIMIT = 60
LEAVING = (ObservedRun("sample-1", 1, deleting=True),)
FORCED = [DeletePod("sample-1-1", "uid-1")]
COMMAND = "run `kubectl delete pod sample-1-1 --force -n team`"


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def late(seconds: float, *, abandoned: bool = True, phase: str = "Running") -> ObservedPod:
    """A pod whose grace ended so many seconds ago."""
    return pod(1, phase, termination_deadline=ago(seconds), abandoned=abandoned, node="node-a")


class Late(NamedTuple):
    """Pods of a run that is being deleted; the setting; what is deleted, words of PodsReady, and the next pass."""

    pods: tuple[ObservedPod, ...]
    limit: int | None
    deleted: list[DeletePod]
    words: str
    again: float = POLL_SECONDS
    runs: tuple[ObservedRun, ...] = LEAVING


LATE: dict[str, Late] = {
    "nothing is deleted by force where the administrator does not allow it": Late(
        (late(9000),), None, [],
        "its node node-a has not confirmed that it stopped. The job waits, because two runs must not write to one "
        f"output. If the node is off or permanently gone, {COMMAND}."),
    "a pod is named before it is deleted by force, with the time": Late(
        (late(LIMIT - 20),), LIMIT, [], f"It is deleted by force at 12:00:20 UTC. If the node is off or permanently "
        f"gone, {COMMAND}."),
    "the next pass comes in time": Late((late(LIMIT - 2),), LIMIT, [], COMMAND, 2.0),
    "a pod that nothing reports is deleted by force": Late((late(LIMIT),), LIMIT, FORCED, "12:00:00 UTC"),
    "so is one that has not begun": Late((late(LIMIT, phase="Pending"),), LIMIT, FORCED, "12:00:00 UTC"),
    "one whose node still reports it never is": Late(
        (late(9000, abandoned=False),), LIMIT, [], "It is not deleted by force, because its node still reports it "
        f"or its run is gone. If the node is off or permanently gone, {COMMAND}."),
    "nor is one within its grace": Late((late(-30),), LIMIT, [], "2 pods", 5.0),
    "nor one that nobody has deleted": Late((replace(late(0), termination_deadline=""),), LIMIT, [], "2 pods"),
    "nor one of which nothing proves any more whose it was": Late(
        (late(9000),), LIMIT, [], "or its run is gone", runs=()),
    "each is deleted in its own time": Late(
        (late(LIMIT), replace(late(LIMIT - 3), name="sample-1-2", uid="uid-2")), LIMIT, FORCED, "sample-1-1", 3.0),
}  # fmt: skip


def judged(case: Late, changes: Json | None = None, **parts: Any) -> Plan:
    observed = seen(changes, runs=case.runs, pods=(pod(0), *case.pods), **parts)
    return plan(observed, PlanSettings(dead_node_seconds=case.limit), NOW, BACKEND)


@pytest.mark.parametrize("case", LATE)
def test_a_pod_outlives_its_grace(case: str) -> None:
    late = LATE[case]
    before = decided(seen({"suspend": True}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    answer = judged(late, {"suspend": True}, status=written(before))
    assert list(answer.actions) == late.deleted
    assert late.words in next(c.message for c in answer.status.conditions or () if c.type == "PodsReady")
    assert answer.requeue_after == late.again


@pytest.mark.parametrize(
    ("status", "runs"),
    [
        pytest.param({"phase": "Succeeded", "completionTime": ago(900)}, LEAVING, id="of a job that has ended"),
        pytest.param({}, (ObservedRun("sample-1", 1, suspended=True),), id="of a run that its queue took back"),
        pytest.param({}, RUN1, id="that somebody deleted from a run that goes on"),
    ],
)
def test_it_does_not_matter_why_the_pod_was_deleted(status: Json, runs: tuple[ObservedRun, ...]) -> None:
    answer = judged(Late((late(LIMIT),), LIMIT, FORCED, "", runs=runs), status=accepted(**status))
    assert list(answer.actions) == FORCED
    assert answer.status.completionTime == status.get("completionTime")


def test_the_next_run_follows_when_the_pod_is_gone() -> None:
    lost = replace(late(LIMIT), disruption="DeletionByTaintManager: NoExecute taint")
    first = judged(Late((lost,), LIMIT, [], "", runs=RUN1), status=accepted())
    assert condition(first, "Training")[1] == "Restarting"
    assert not first.status.restarts, "a lost node is not the job's fault"
    gone = plan(seen(status=written(first)), PlanSettings(dead_node_seconds=LIMIT), NOW, BACKEND)
    assert [type(a) for a in gone.actions] == [CreateRun]


# How long pods stay

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"


def stays(key: str, seconds: int = 45) -> Json:
    return {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}


GPU: Json = {"key": "nvidia.com/gpu", "operator": "Exists"}
TOLERATIONS: dict[str, tuple[int | None, list[Json], list[Json] | None]] = {
    "as long as the cluster says": (None, [], None),
    "for the time of the setting": (45, [], [stays(NOT_READY), stays(UNREACHABLE)]),
    "not at all": (0, [], [stays(NOT_READY, 0), stays(UNREACHABLE, 0)]),
    "besides what the job tolerates": (45, [GPU], [GPU, stays(NOT_READY), stays(UNREACHABLE)]),
    "as the job says of one taint": (45, [stays(NOT_READY, 9)], [stays(NOT_READY, 9), stays(UNREACHABLE)]),
    "for ever, as the job tolerates every taint": (45, [{"operator": "Exists"}], [{"operator": "Exists"}]),
    "for the time of the setting, as the job speaks of scheduling only": (
        45, [{"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"}],
        [{"key": NOT_READY, "operator": "Exists", "effect": "NoSchedule"}, stays(NOT_READY), stays(UNREACHABLE)]),
}  # fmt: skip
"""Setting; the job's tolerations; those of its pods."""


@pytest.mark.parametrize("case", TOLERATIONS)
def test_pods_stay_on_a_node_that_does_not_answer(case: str) -> None:
    seconds, own, expected = TOLERATIONS[case]
    settings = PlanSettings(eviction_seconds=seconds)
    job = seen({"compute.gpu_type": "CPU", "pods.tolerations": own or None}).resource
    resolution = validate(job, settings).resolution
    assert resolution is not None
    replicas = BACKEND.render(workload(resolution, settings))["spec"]["pytorchReplicaSpecs"]
    assert replicas["Worker"]["template"]["spec"].get("tolerations") == expected
