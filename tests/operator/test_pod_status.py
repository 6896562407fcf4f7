"""What a pod's status says, as real kubelets write it."""

from __future__ import annotations

import pytest

from builders import Json
from finetune_operator import transform
from finetune_plan.backends import DEFAULT as BACKEND

ERROR = {"exitCode": 2, "reason": "Error", "message": "no route\n", "finishedAt": "2026-01-01T00:00:09Z"}
KILLED = {"exitCode": 137, "reason": "Error", "finishedAt": "2026-01-01T00:00:40Z"}
INITIALIZING = {"name": "pytorch", "state": {"waiting": {"reason": "PodInitializing"}}}
EVICTED = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 1Mi."


def target(reason: str, message: str) -> Json:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}


STATUSES: dict[str, tuple[Json, str, str]] = {
    "rejected: no container has a status": (
        {"phase": "Failed", "reason": "OutOfcpu",
         "message": "Pod was rejected: Node didn't have enough resource: cpu"},
        "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu", ""),
    "evicted, with a condition and a reason": (
        {"phase": "Failed", "reason": "Evicted", "message": EVICTED,
         "conditions": [target("TerminationByKubelet", EVICTED)]}, f"TerminationByKubelet: {EVICTED[:-1]}", ""),
    "node shutdown": (
        {"phase": "Failed", "reason": "Terminated",
         "message": "Pod was terminated in response to imminent node shutdown."},
        "Terminated: Pod was terminated in response to imminent node shutdown", ""),
    "a node that does not answer, while the pod may run": (
        {"phase": "Running", "reason": "NodeLost", "message": "Node a which was running pod b is unresponsive"},
        "NodeLost: Node a which was running pod b is unresponsive", ""),
    "a disruption without a reason": (
        {"phase": "Failed", "conditions": [{"type": "DisruptionTarget", "status": "True"}]}, "Disrupted", ""),
    "an init container failed": (
        {"phase": "Failed", "containerStatuses": [INITIALIZING],
         "initContainerStatuses": [{"name": "mesh", "state": {"terminated": ERROR}}]},
        "", "init container mesh exited with code 2 (Error: no route)"),
    "an init container failed, and a sidecar was killed for it": (
        {"phase": "Failed", "containerStatuses": [INITIALIZING], "initContainerStatuses": [
            {"name": "proxy", "state": {"terminated": KILLED}}, {"name": "mesh", "state": {"terminated": ERROR}}]},
        "", "init container mesh exited with code 2 (Error: no route)"),
    "a container that was added failed": (
        {"phase": "Failed", "containerStatuses": [
            {"name": "pytorch", "state": {"terminated": {"exitCode": 0}}},
            {"name": "log", "state": {"terminated": ERROR}}]},
        "", "container log exited with code 2 (Error: no route)"),
    "the trainer failed": (
        {"phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": {"terminated": ERROR}}]}, "", ""),
    "a pod that runs": ({"phase": "Running"}, "", ""),
}  # fmt: skip
"""A status; why the cluster ended the pod, and which other container failed."""


@pytest.mark.parametrize("case", STATUSES)
def test_why_a_pod_ended(case: str) -> None:
    status, disruption, failure = STATUSES[case]
    metadata = {"name": "p", "uid": "u", "labels": {"finetune.dev/run": "1"}}
    found = transform.pod({"metadata": metadata, "status": status}, BACKEND)
    assert (found.disruption, found.failure) == (disruption, failure)


def condition(kind: str, status: str, **more: str) -> Json:
    return {"type": kind, "status": status, **more}


RUNS = [condition("ContainersReady", "True"), condition("Ready", "True")]
MARKED = [condition("ContainersReady", "True"), condition("Ready", "False")]
ENDING = [condition("ContainersReady", "False", reason="ContainersNotReady"), condition("Ready", "False")]
REPORTS: dict[str, tuple[Json, Json, bool]] = {
    "its kubelet reports it": ({}, {"phase": "Running", "conditions": RUNS}, False),
    "its kubelet reports that it is ending": ({}, {"phase": "Running", "conditions": ENDING}, False),
    "the node controller has marked it": ({}, {"phase": "Running", "conditions": MARKED}, True),
    "something else makes it not ready": (
        {"readinessGates": [{"conditionType": "mesh"}]}, {"phase": "Running", "conditions": MARKED}, False),
    "it has not begun": ({}, {"phase": "Pending", "conditions": ENDING}, True),
    "nothing is reported": ({}, {"phase": "Running"}, False),
}  # fmt: skip
"""Spec and status of a pod; whether its node may be dead."""


@pytest.mark.parametrize("case", REPORTS)
@pytest.mark.parametrize("grace", [30, 0], ids=["deleted", "deleted by force"])
def test_whether_a_node_reports_a_pod(case: str, grace: int) -> None:
    spec, status, abandoned = REPORTS[case]
    metadata = {"name": "p", "uid": "u", "labels": {"finetune.dev/run": "1"}, "deletionGracePeriodSeconds": grace}
    found = transform.pod({"metadata": metadata, "spec": spec, "status": status}, BACKEND)
    assert found.abandoned is (abandoned and grace > 0), "one that was deleted by force is held by a finalizer"


def test_since_when_no_node_can_take_a_pod() -> None:
    metadata = {"name": "p", "uid": "u", "labels": {"finetune.dev/run": "1"}}
    waits = condition("PodScheduled", "False", reason="Unschedulable", lastTransitionTime="2026-01-01T00:00:09Z")
    gated = waits | {"reason": "SchedulingGated"}
    times = [
        transform.pod({"metadata": metadata, "status": {"phase": "Pending", "conditions": [each]}}, BACKEND)
        for each in (waits, gated)
    ]
    assert [found.unschedulable_since for found in times] == ["2026-01-01T00:00:09Z", ""]


@pytest.mark.parametrize("time", ["0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "soon"])
def test_a_time_that_cannot_be_counted_with_is_absent(time: str) -> None:
    metadata = {"name": "p", "uid": "u", "labels": {"finetune.dev/run": "1"}, "creationTimestamp": time}
    waits = condition("PodScheduled", "False", reason="Unschedulable", lastTransitionTime=time)
    ended = [{"name": "pytorch", "state": {"terminated": {"exitCode": 1, "finishedAt": time}}}]
    status = {"startTime": time, "conditions": [waits], "containerStatuses": ended}
    found = transform.pod({"metadata": metadata, "spec": {"nodeName": "n"}, "status": status}, BACKEND)
    assert (found.bound_since, found.ended_at, found.unschedulable_since, found.exit_code) == ("", "", "", 1)
