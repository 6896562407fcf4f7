"""A node dies amid training, and the job finishes, where its pods may be deleted by force."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from builders import Json
from e2e.bed import SETTINGS, Bed, changed_operator
from e2e.runs import runs
from e2e.team import Team, explained
from e2e.test_restarts import SAME, SMALL, STEPS, is_due
from finetune_api.runtime.protocol import RESULT
from testbed.watch import wait_for

JOB = "dead-node"
ALONE: Json = SMALL | {
    "compute": {"gpu_type": "CPU", "gpu_count": 1},
    "output": {"uri": f"pvc://shared/{JOB}"},
    "lifecycle": {"terminationGracePeriodSeconds": 30},
}
VALUES: Json = {
    # A node that is back takes pods up to 5 s before the node controller, which looks that often, removes the taint
    # that evicts them; on a busy machine, later. A shorter time might evict the second run too.
    "settings": SETTINGS | {"evictionSeconds": 30, "deadNodeSeconds": 1},
    # It is on the same node and runs on: its own pod must not be evicted, however long this takes.
    "tolerations": [{"operator": "Exists", "effect": "NoExecute"}],
}
PATIENCE_S = 300
"""For each stage. The node controller alone takes a minute until it calls a node dead."""


@pytest.fixture
def impatient(team: Team, operator: str) -> Iterator[None]:
    """Only here: with so short a time, each node that is busy for too long would restart the jobs of other tests."""
    with changed_operator(team.cluster, operator, VALUES):
        yield


@pytest.mark.usefixtures("impatient")
def test_a_job_whose_node_dies_finishes_where_its_pods_may_be_deleted_by_force(bed: Bed, team: Team) -> None:
    pods = f"/api/v1/namespaces/{team.namespace}/pods"
    team.submit(JOB, **ALONE)
    with explained(team.cluster, team.namespace):
        team.until(JOB, is_due, timeout_s=PATIENCE_S)
        with bed.node.dead(f"{JOB}-1-worker-0", "pytorch"):
            # Nobody but the operator can remove the first run's pod, and the second run waits for that.
            wait_for(bed.cluster.api, f"{pods}/{JOB}-2-worker-0", bool, timeout_s=PATIENCE_S)
        status = team.until(JOB, lambda status: status.get("completionTime"), timeout_s=PATIENCE_S)
    team.kubectl("delete", "finetunejob", JOB)
    team.pods(0)

    assert status["phase"] == "Succeeded", status
    assert (status["run"], status.get("restarts") or 0) == (2, 0), "a lost node is not the job's fault"
    before, after = runs(team.volume / JOB)
    assert before.saved <= after.resumed <= before.steps[-1]
    assert after.steps == list(range(after.resumed + 1, STEPS + 1))
    repeated = {step: before.losses[step] for step in after.steps if step in before.losses}
    assert {step: after.losses[step] for step in repeated} == pytest.approx(repeated, rel=SAME)
    assert (team.volume / JOB / RESULT).is_dir()
