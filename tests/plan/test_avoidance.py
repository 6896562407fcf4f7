"""Which nodes a run avoids, how the pods say so, and when the job gives that up: lives of a job on a fake clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builders import Json
from finetune_api.runtime.exits import Exit
from finetune_plan.avoidance import PATIENCE_SECONDS
from finetune_plan.model import CreateRun, ObservedPod, Plan
from finetune_plan.settings import PlanSettings
from plan.test_restarts import Life, text

ADMISSION = "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to no healthy devices present"
FAST = PlanSettings(backoff_seconds=0, max_free_restarts=100)
HARDWARE, CRASHED = Exit.HARDWARE_FAILED, Exit.CRASHED


def born(life: Life) -> Json:
    """The pod's part of the manifest of the next run."""
    while True:
        answer = life.reconcile()
        for action in answer.actions:
            if isinstance(action, CreateRun):
                spec: Json = action.manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
                return spec


def run_on(life: Life, node: str, how: Any) -> Plan:
    """The run starts on a node, and ends there."""
    life.start()
    life.pods = (replace(life.pods[0], node=node),)
    return life.end(137, disruption=how) if isinstance(how, str) else life.end(how)


def wait_unscheduled(life: Life, seconds: float) -> Plan:
    """The pod of the run fits on no node for so long."""
    waits = ObservedPod(f"sample-{life.run}-worker-0", f"p-{life.run}", life.run, 0, "Pending")
    life.pods = (replace(waits, waiting="Unschedulable: 0/9 nodes", unschedulable_since=text(life.now)),)
    life.wait(seconds)
    return life.reconcile()


def fields(*nodes: str) -> list[Json]:
    return [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]


LIVES: dict[str, tuple[list[tuple[str, Any]], list[str]]] = {
    "a node whose GPU failed": ([("a", HARDWARE)], ["a"]),
    "a node whose kubelet cannot allocate devices": ([("a", ADMISSION)], ["a"]),
    "no node whose pod was preempted": ([("a", "PreemptionByScheduler")], []),
    "no node whose kubelet was full": ([("a", "OutOfcpu: Pod was rejected")], []),
    "no node on which the trainer crashed": ([("a", CRASHED)], []),
    "the node also after other failures": ([("a", HARDWARE), ("b", CRASHED), ("c", "Preempted")], ["a"]),
    "three nodes at most, the newest": (
        [("a", HARDWARE), ("b", ADMISSION), ("c", HARDWARE), ("d", HARDWARE)], ["b", "c", "d"]),
    "a node once, as the newest": ([("a", HARDWARE), ("b", HARDWARE), ("a", HARDWARE)], ["b", "a"]),
}  # fmt: skip
"""On which node each run was and how it ended; what the next one avoids."""


@pytest.mark.parametrize("gpu", ["H100", "CPU"])
@pytest.mark.parametrize("case", LIVES)
def test_a_run_avoids(case: str, gpu: str) -> None:
    ends, expected = LIVES[case]
    life = Life({"lifecycle.maxRestarts": 100, "compute.gpu_type": gpu}, FAST)
    for node, how in ends:
        run_on(life, node, how)
        pod = born(life)
    affinity = pod.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    assert bool(terms) == (gpu == "H100" or bool(expected))
    assert [t for t in terms if (t.get("matchFields") or []) != fields(*expected)] == [], "terms are alternatives"
    assert all(("matchExpressions" in t) is (gpu == "H100") for t in terms)
    assert [n["name"] for n in life.status.get("avoidedNodes", [])] == expected


def test_the_status_says_which_nodes_are_avoided_and_why() -> None:
    life = Life({}, FAST)
    run_on(life, "a", HARDWARE)
    born(life)
    run_on(life, "b", ADMISSION)
    assert life.status["avoidedNodes"] == [
        {"name": "a", "reason": "HardwareFailed", "run": 1},
        {"name": "b", "reason": "UnexpectedAdmissionError", "run": 2},
    ]
    assert not life.status.get("restarts"), "broken hardware is not the job's fault"
    born(life)
    wait_unscheduled(life, 0)
    words = "The run avoids a (HardwareFailed in run 1), b (UnexpectedAdmissionError in run 2)."
    assert words in life.says("PodsReady")


def test_a_run_that_fits_nowhere_else_is_followed_by_one_that_avoids_nothing() -> None:
    life = Life({}, FAST)
    run_on(life, "a", HARDWARE)
    born(life)
    early = wait_unscheduled(life, PATIENCE_SECONDS - 1)
    assert (early.actions, early.requeue_after) == ((), 1.0)
    life.wait(1)
    life.reconcile()
    assert life.says("Training").startswith(
        "No other node can take the pods; the next run no longer avoids a (HardwareFailed in run 1)."
    )
    assert "avoidedNodes" not in life.status
    assert "matchFields" not in str(born(life))
    assert not life.status.get("restarts")


def test_pods_that_wait_for_a_node_while_none_is_avoided_only_wait() -> None:
    life = Life({}, FAST)
    answer = wait_unscheduled(life, 10 * PATIENCE_SECONDS)
    assert (answer.actions, answer.requeue_after) == ((), None)


def test_a_job_whose_only_nodes_are_broken_ends() -> None:
    life = Life(settings=PlanSettings(backoff_seconds=0, max_free_restarts=4))
    for _ in range(9):
        if life.status.get("completionTime"):
            break
        run_on(life, "a", HARDWARE)
        if not life.status.get("completionTime"):
            born(life)
            wait_unscheduled(life, PATIENCE_SECONDS)
            born(life)
    assert "Restarts are free, but 4 in a row brought no new checkpoint." in life.says("Failed")
    assert life.status["run"] == 5
