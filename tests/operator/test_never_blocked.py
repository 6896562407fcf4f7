"""What is wrong with some jobs or nodes costs no other job more than a moment: on the real API server."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from builders import Json
from finetune_api.runtime.report import ProgressRecord
from operating.process import OperatorProcess
from operating.proxy import Lens, Proxy
from operating.team import SMALL, Team
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet, SilentKubelet, bind_and_run
from testbed.watch import wait_for, wait_for_all

SLACK_S = 2.0
"""What may be added to the undisturbed delay, which is measured on the same machine a moment before. A busy machine
also stretches what is measured: TIMES."""
TIMES = 4
SAMPLES = 25
TROUBLED, SLOW = 480, 20


def delays(team: Team, prefix: str) -> list[float]:
    """Seconds from a job's creation to that of its PyTorchJob, sorted."""
    found = []
    for number in range(SAMPLES):
        name, created = f"{prefix}-{number}", time.monotonic()
        team.submit(SMALL, name=name)
        wait_for(team.api, f"{team.runs}/{name}-1", bool)
        found.append(time.monotonic() - created)
    return sorted(found)


def assert_hardly_later(disturbed: list[float], undisturbed: list[float]) -> None:
    """The slowest of so few samples is their p99."""
    print(f"create to PyTorchJob, p99: undisturbed {undisturbed[-1]:.2f} s, disturbed {disturbed[-1]:.2f} s")
    assert disturbed[-1] <= SLACK_S + TIMES * undisturbed[-1]


def progress(step: int) -> str:
    return ProgressRecord(
        time=1.0, step=step, total_steps=9, epoch=0.1, loss=1.0, learning_rate=1e-5, grad_norm=1.0,
        tokens_per_second=1.0, eta_seconds=1.0,
    ).line()  # fmt: skip


def is_at_step(step: int, status: Json) -> bool:
    return bool(status.get("progress", {}).get("step") == step)


def claimed(count: int, jobs: list[Json]) -> bool:
    """Whether so many jobs have claimed a run."""
    return sum(bool((job.get("status") or {}).get("run")) for job in jobs) == count


def test_nodes_that_take_connections_and_never_answer_cost_their_own_jobs_progress_only(
    plane: ControlPlane, tmp_path: Path
) -> None:
    team = Team(plane.cluster.api, plane.cluster.namespace())
    with ExitStack() as stack:
        operator = stack.enter_context(OperatorProcess(plane.cluster.kubeconfig, tmp_path))
        silent = [stack.enter_context(SilentKubelet(team.api, f"silent-{number}")) for number in range(2)]
        healthy = stack.enter_context(Kubelet(team.api, plane.certificate, plane.key, team.namespace, tmp_path))
        undisturbed = delays(team, "before")
        for name in [*(f"dead-{number}" for number in range(16)), "alive"]:
            team.submit(SMALL, name=name)
            team.until_run(f"{name}-1", pods=1)
        for number in range(16):
            bind_and_run(team.api, team.namespace, f"dead-{number}-1-worker-0", silent[number % 2].name)
        time.sleep(2)  # so that reads are under way, whose time-outs are longer
        disturbed = delays(team, "after")
        healthy.run("alive-1-worker-0")
        for step in (1, 2, 3):
            healthy.say("alive-1-worker-0", progress(step))
            team.until(partial(is_at_step, step), "alive")
        until_unreadable(operator, nodes=2)
        assert_hardly_later(disturbed, undisturbed)


def until_unreadable(operator: OperatorProcess, *, nodes: int) -> None:
    """Until reads of so many nodes have timed out."""
    give_up = time.monotonic() + 60
    while f"finetune_operator_unreadable_nodes {nodes:.1f}" not in operator.answer("metrics")[1]:
        assert time.monotonic() < give_up
        time.sleep(0.2)


class Holding(Lens):
    """Takes each PyTorchJob of one namespace and never answers."""

    def __init__(self, namespace: str) -> None:
        self._path = f"/namespaces/{namespace}/pytorchjobs"

    def holds(self, method: str, path: str) -> bool:
        return method == "POST" and path.endswith(self._path)


@pytest.mark.timeout(600)
def test_500_jobs_in_trouble_leave_one_that_is_fine(plane: ControlPlane, tmp_path: Path) -> None:
    """Some are refused again and again, others wait for an answer that does not come."""
    api = plane.cluster.api
    fine, refused, slow = (Team(api, plane.cluster.namespace()) for _ in range(3))
    hard = {"count/pytorchjobs.kubeflow.org": "0"}
    metadata = {"name": "none", "namespace": refused.namespace}
    api.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}})
    wait_for(
        api, f"/api/v1/namespaces/{refused.namespace}/resourcequotas/none", lambda q: q and "hard" in q["status"]
    )
    settings = {"REQUEST_TIMEOUT_SECONDS": "3", "PASS_SECONDS": "3"}
    with (
        Proxy(plane.cluster.kubeconfig, tmp_path, Holding(slow.namespace)) as proxy,
        OperatorProcess(proxy.kubeconfig, tmp_path, settings) as operator,
    ):
        undisturbed = delays(fine, "before")
        for number in range(TROUBLED):
            refused.submit(SMALL, name=f"refused-{number}")
        for number in range(SLOW):
            slow.submit(SMALL, name=f"slow-{number}")
        wait_for_all(api, refused.jobs, partial(claimed, TROUBLED), timeout_s=120)
        wait_for_all(api, slow.jobs, partial(claimed, SLOW), timeout_s=120)
        disturbed = delays(fine, "after")
        errors = [line for line in operator.answer("metrics")[1].splitlines() if "reconcile_errors_total{" in line]
        print(errors)
        assert_hardly_later(disturbed, undisturbed)
        assert refused.run_names() == slow.run_names() == []
