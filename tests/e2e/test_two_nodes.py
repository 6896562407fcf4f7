"""A job on two nodes, from kubectl apply to an adapter that loads: real pods of our image, nothing played."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from builders import Json
from e2e.team import Team
from finetune_api.runtime import report
from finetune_api.runtime.report import ProgressRecord
from testbed.watch import wait_for_all

SPEC: Json = {
    "job": {"model": "pvc://shared/tiny", "data": "configmap://rows/train.jsonl"},
    "output": {"uri": "pvc://shared/out"},
    "compute": {"gpu_type": "CPU", "gpu_count": 2, "nodes": 2},
    "training": {"mode": "lora"},
    "hyperparameters": {"batch_size": 8, "n_epochs": 100, "learning_rate": 1e-4, "sequence_length": 64},
    # One thread each: two pods on two cores would wait for each other's.
    "pods": {"cpu": "100m", "memory": "3Gi", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]},
}
MOVES = 5
"""How often status.progress is seen to move before the operator's pod is deleted."""


@dataclass
class Story:
    """What was seen of a job from its beginning to its end. The operator's pod was deleted in the middle."""

    steps: list[int] = field(default_factory=list)
    """Of status.progress, whenever it moved."""
    status: Json = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    """Names of the operator's pods."""
    before: set[str] = field(default_factory=set)
    """Identities of PyTorchJob and pods before the deletion."""
    after: set[str] = field(default_factory=set)
    """And at the end."""
    log: str = ""


@pytest.fixture(scope="module")
def story(team: Team, operator: str) -> Story:
    told = Story()
    team.submit("sums", **SPEC)
    for status in team.statuses("sums", timeout_s=600):
        step = (status.get("progress") or {}).get("step")
        if step and step not in told.steps:
            told.steps.append(step)
            if len(told.steps) == MOVES:
                told.before, told.operators = identities(team), {replace_operator(team, operator)}
        told.status = status
        if status.get("completionTime"):
            break
    told.after, told.log = identities(team), team.kubectl("logs", "sums-1-worker-0")
    told.operators |= set(operator_pods(team, operator))
    return told


def identities(team: Team) -> set[str]:
    return set(team.kubectl("get", "pytorchjobs,pods", "-o", "jsonpath={.items[*].metadata.uid}").split())


def operator_pods(team: Team, namespace: str) -> list[str]:
    found = team.cluster.api.items(f"/api/v1/namespaces/{namespace}/pods")
    return [pod["metadata"]["name"] for pod in found]


def replace_operator(team: Team, namespace: str) -> str:
    """The name of the pod that was deleted."""
    [name] = operator_pods(team, namespace)
    team.kubectl("delete", "pod", name, "--namespace", namespace, "--wait=false")
    return name


def test_two_pods_train_to_the_end_and_the_status_follows(story: Story) -> None:
    assert story.status["phase"] == "Succeeded", story.status
    assert (story.status["run"], story.status.get("restarts") or 0, story.status["layout"]["nodes"]) == (1, 0, 2)
    assert story.steps == sorted(story.steps)
    assert len(story.steps) > MOVES
    assert story.steps[-1] == story.status["progress"]["totalSteps"]


def test_another_operator_in_the_middle_changes_nothing(story: Story) -> None:
    assert len(story.operators) == 2
    assert len(story.before) == 3, "a PyTorchJob and two pods"
    assert story.after == story.before


def test_kubectl_logs_shows_the_records(story: Story) -> None:
    records = [found for line in story.log.splitlines() if isinstance(found := report.parse(line), ProgressRecord)]
    assert records[-1].step == story.status["progress"]["totalSteps"]


def test_finetune_run_ends_with_the_same_loss(story: Story, team: Team) -> None:
    alone = team.run_here("sums-here", SPEC)
    assert story.status["progress"]["loss"] == pytest.approx(alone["progress"]["loss"], abs=1e-4)
    assert story.status["result"]["metrics"] == pytest.approx(alone["result"]["metrics"], abs=1e-4)


def test_the_adapter_outlives_its_job_and_loads(story: Story, team: Team) -> None:
    assert story.status["result"]["uri"] == "pvc://shared/out/result"
    team.kubectl("delete", "finetunejob", "sums")
    team.pods(0)
    wait_for_all(team.cluster.api, f"/apis/kubeflow.org/v1/namespaces/{team.namespace}/pytorchjobs", lambda x: not x)
    base = AutoModelForCausalLM.from_pretrained(team.model)
    adapter = PeftModel.from_pretrained(base, team.volume / "out" / "result")
    trained = [p for name, p in adapter.named_parameters() if "lora_B" in name]
    assert trained
    assert all(p.abs().sum() > 0 for p in trained), "lora_B starts at zero: training has moved it"
