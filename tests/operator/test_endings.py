"""How jobs end where something is in the way: kubelets, a Training Operator, webhooks, the operator's own death."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.codegen.crd import crd
from finetune_api.runtime.exits import Exit
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.kwok import Node
from testbed.pods import bind_pod, end_pod, fail_init, reject_pod, remove_pod, run_pod
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for, wait_for_all


@pytest.fixture
def bound(team: Team) -> Iterator[str]:
    """A node that pods can be bound to; the test is its kubelet."""
    team.api.create(Node(team.namespace).manifest())
    yield team.namespace
    team.api.delete(f"/api/v1/nodes/{team.namespace}")


REJECTIONS = {
    "OutOfcpu": "Node didn't have enough resource: cpu, requested: 4000, used: 3000, capacity: 4000",
    "OutOfnvidia.com/gpu": "Node didn't have enough resource: nvidia.com/gpu, requested: 1, used: 8, capacity: 8",
    "TopologyAffinityError": "Resources cannot be allocated with Topology locality",
    "UnexpectedAdmissionError": "Allocate failed due to no healthy devices present, which is unexpected",
}


@pytest.mark.parametrize("reason", REJECTIONS)
def test_a_pod_that_its_kubelet_rejects_is_followed_by_another_for_free(team: Team, reason: str) -> None:
    team.submit(SMALL | {"lifecycle.maxRestarts": 0})
    team.until_run("sample-1", pods=1)
    reject_pod(team.api, team.namespace, "sample-1-worker-0", reason, REJECTIONS[reason])
    status = team.until(lambda s: condition(s, "Training")[1] == "Restarting")
    said = f"The cluster removed pod sample-1-worker-0: {reason}: Pod was rejected: {REJECTIONS[reason]}."
    assert message(status, "Training").startswith(f"{said} The next run starts automatically")
    team.until_run("sample-2", pods=1)
    assert not team.status().get("restarts")


def test_a_run_that_lost_a_pod_before_all_ran_and_left_none_is_followed_by_another_for_free(
    team: Team, bound: str
) -> None:
    team.submit({"lifecycle.maxRestarts": 0})
    team.until_run("sample-1")
    bind_pod(team.api, team.namespace, "sample-1-worker-0", bound)
    run_pod(team.api, team.namespace, "sample-1-worker-0")
    team.until(lambda s: message(s, "PodsReady").startswith("1 of 2"))
    team.api.delete(f"{team.pods}/sample-1-worker-0")
    wait_for(team.api, f"{team.runs}/sample-1", lambda run: run and team.backend.observe(run).over)
    remove_pod(team.api, team.namespace, "sample-1-worker-0")
    team.until_run("sample-2")
    assert not team.status().get("restarts")


def test_a_failed_init_container_costs_a_restart_and_is_named(team: Team) -> None:
    team.submit({"lifecycle.maxRestarts": 0})
    team.until_run("sample-1")
    run_pod(team.api, team.namespace, "sample-1-worker-0")
    fail_init(team.api, team.namespace, "sample-1-worker-1", "vault-agent-init", 2, "permission denied")
    status = team.until(lambda s: condition(s, "FailureTarget")[0] == "True")
    words = "Pod sample-1-worker-1: init container vault-agent-init exited with code 2 (Error: permission denied)."
    assert message(status, "FailureTarget").startswith(words)
    assert condition(team.until_phase("Failed"), "Failed") == ("True", "TrainerCrashed")


def test_a_job_is_cancelled_when_its_pods_have_ended_and_names_them_until_then(team: Team, bound: str) -> None:
    team.submit()
    for pod in team.until_run("sample-1"):
        bind_pod(team.api, team.namespace, pod["metadata"]["name"], bound)
    team.start("sample-1")
    team.edit({"cancel": True})
    status = team.until(lambda s: "They have until" in message(s, "PodsReady"))
    assert (status["phase"], status.get("completionTime")) == ("Stopping", None)
    assert condition(status, "FailureTarget") == ("True", "Cancelled")
    assert condition(status, "Failed") == ("", "")
    assert "2 pods with 8 GPUs (sample-1-worker-0, sample-1-worker-1)" in message(status, "PodsReady")
    team.edit({"cancel": False})
    end_pod(team.api, team.namespace, "sample-1-worker-0")
    for number in range(2):
        remove_pod(team.api, team.namespace, f"sample-1-worker-{number}")
    status = team.until_phase("Cancelled")
    assert condition(status, "Failed") == condition(status, "FailureTarget")
    assert {"Cancelled"} <= set(team.events())


def test_a_failed_job_keeps_its_run_for_the_logs_and_is_failed_when_the_other_pods_have_ended(
    team: Team, bound: str
) -> None:
    team.submit()
    for pod in team.until_run("sample-1"):
        bind_pod(team.api, team.namespace, pod["metadata"]["name"], bound)
    team.start("sample-1")
    team.end("sample-1-worker-1", Exit.DATA_REFUSED, "Line 3 is no JSON.")
    status = team.until(lambda s: "They have until" in message(s, "PodsReady"))
    assert (status["phase"], condition(status, "FailureTarget")) == ("Stopping", ("True", "DataRefused"))
    assert "1 pod with 4 GPUs (sample-1-worker-0)" in message(status, "PodsReady")
    team.end("sample-1-worker-0")
    remove_pod(team.api, team.namespace, "sample-1-worker-0")
    status = team.until_phase("Failed")
    assert condition(status, "Failed") == ("True", "DataRefused")
    assert team.run_names() == ["sample-1"]


def test_the_next_job_of_the_name_starts_when_the_pods_of_the_last_one_have_ended(team: Team, bound: str) -> None:
    team.submit()
    team.start("sample-1")
    team.end("sample-1-worker-1", Exit.CRASHED, "boom")
    for pod in team.until_run("sample-2"):
        bind_pod(team.api, team.namespace, pod["metadata"]["name"], bound)
    team.start("sample-2")
    team.api.delete(f"{team.jobs}/sample")
    team.until_gone(team.jobs)
    team.submit()
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", "PreviousJob"))
    assert "pod sample-2-worker-0, pod sample-2-worker-1" in message(status, "PodsReady")
    assert status["phase"] == "Queued"
    remove_pod(team.api, team.namespace, "sample-2-worker-0")
    team.until(lambda s: "worker-0" not in message(s, "PodsReady"))
    assert not team.status().get("run")
    remove_pod(team.api, team.namespace, "sample-2-worker-1")
    assert [pod["metadata"]["labels"]["finetune.dev/run"] for pod in team.until_run("sample-1")] == ["1", "1"]


def test_a_webhook_that_fails_is_named_and_asked_again(team: Team) -> None:
    rule = {
        "apiGroups": ["kubeflow.org"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["pytorchjobs"],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": team.namespace}}
    hook = {"name": "expired.example.org", "clientConfig": {"url": "https://127.0.0.1:1/none"}, "rules": [rule],
            "namespaceSelector": selector, "sideEffects": "None", "admissionReviewVersions": ["v1"]}  # fmt: skip
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    team.api.create(kind | {"metadata": {"name": team.namespace}, "webhooks": [hook]})
    try:
        team.submit()
        status = team.until(lambda s: condition(s, "PodsReady") == ("False", "CreateRefused"))
        assert 'failed calling webhook "expired.example.org"' in message(status, "PodsReady")
    finally:
        path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
        team.api.delete(f"{path}/{team.namespace}")
    wait_for_all(team.api, team.runs, lambda runs: [r["metadata"]["name"] for r in runs] == ["sample-1"])


def test_a_training_operator_that_is_down_is_named_within_a_minute(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, crds=[crd(), pytorchjob_crd()]) as plane:
        team = Team(plane.cluster.api, plane.cluster.namespace())
        with OperatorProcess(plane.cluster.kubeconfig, tmp_path):
            team.submit()
            status = team.until(lambda s: condition(s, "PodsReady") == ("False", "BackendSilent"))
    assert "The Training Operator has not reconciled run sample-1 since" in message(status, "PodsReady")
    assert "kubectl get pods -A -l control-plane=kubeflow-training-operator" in message(status, "PodsReady")
