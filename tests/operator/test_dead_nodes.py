"""Nodes that die or are broken, on the real API server with its node controller and scheduler.

All situations are in tests/plan/test_dead_nodes.py and test_avoidance.py; real kubelets are in tests/e2e.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builders import Json
from finetune_operator.cluster import KubernetesCluster
from finetune_operator.errors import Conflict
from finetune_operator.identity import Key, version_of
from finetune_operator.settings import Settings
from finetune_plan.avoidance import PATIENCE_SECONDS
from finetune_plan.backends import DEFAULT as BACKEND
from operating.nodes import add_node, fall_silent, node_of
from operating.plane import unserved
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.pods import reject_pod, remove_pod, run_pod
from testbed.watch import wait_for

POD = "sample-1-worker-0"
BROKEN = "Allocate failed due to no healthy devices present, which is unexpected"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane whose scheduler runs, and whose nodes the test plays; no operator."""
    with unserved(tmp_path_factory.mktemp("dead-nodes"), scheduler=True) as found:
        yield found


@pytest.fixture
def team(plane: ControlPlane) -> Team:
    """A namespace that nobody serves yet; no node is there. Each test has names of its own for nodes: the node
    controller takes a node of the same name for the old one, which has been silent since."""
    api = plane.cluster.api
    for node in api.items("/api/v1/nodes"):
        api.delete(f"/api/v1/nodes/{node['metadata']['name']}")
    return Team(api, plane.cluster.namespace())


@contextmanager
def operating(plane: ControlPlane, folder: Path, team: Team, **settings: str) -> Iterator[OperatorProcess]:
    """An operator for one namespace."""
    places = {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    with OperatorProcess(plane.cluster.kubeconfig, folder, places | settings) as process:
        yield process


def runs_on(team: Team, node: str) -> None:
    add_node(team, node)
    team.submit(SMALL)
    assert node_of(team, "sample-1") == node
    run_pod(team.api, team.namespace, POD)
    team.until(lambda s: condition(s, "PodsReady")[0] == "True")


def end_grace(team: Team, pod: str = POD) -> None:
    """Its grace is five minutes, and nobody wants to wait for them."""
    team.api.delete(f"{team.pods}/{pod}", gracePeriodSeconds="1")


def strangers_pod(team: Team, node: str) -> str:
    """A pod with all labels of the run's, which something else controls, and which is on the dead node as well."""
    other = team.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": named(team, "other")})
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": other["metadata"]["uid"]}
    labels = team.api.get(f"{team.pods}/{POD}")["metadata"]["labels"]
    metadata = named(team, "stranger") | {"labels": labels, "ownerReferences": [owner | {"controller": True}]}
    spec = {"containers": [{"name": "pytorch", "image": "x"}], "nodeName": node}
    team.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    run_pod(team.api, team.namespace, "stranger")
    return "stranger"


def named(team: Team, name: str) -> Json:
    return {"name": name, "namespace": team.namespace}


def test_a_pod_of_a_dead_node_is_deleted_by_force_where_that_is_allowed(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team, EVICTION_SECONDS="1", DEAD_NODE_SECONDS="2") as operator:
        runs_on(team, "dying")
        stranger = strangers_pod(team, "dying")
        add_node(team, "healthy")
        fall_silent(team, "dying", POD, stranger)
        status = team.until(lambda s: condition(s, "Training")[1] == "Restarting")
        assert "DeletionByTaintManager" in message(status, "Training"), "after a second, not after five minutes"
        end_grace(team)
        end_grace(team, stranger)
        assert node_of(team, "sample-2") == "healthy"
        status = team.until(lambda s: s["run"] == 2)
    assert not status.get("restarts"), "a lost node is not the job's fault"
    assert "pod deleted by force" in [line["message"] for line in operator.lines()]
    assert "deletionTimestamp" in team.api.get(f"{team.pods}/{stranger}")["metadata"]


def test_a_pod_that_its_node_still_reports_is_named_and_never_deleted_by_force(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team, DEAD_NODE_SECONDS="1"):
        runs_on(team, "slow")
        team.edit({"suspend": True})
        team.until_phase("Stopping")
        end_grace(team)
        status = team.until(lambda s: condition(s, "PodsReady")[1] == "PodOverdue")
        assert "its node slow has not confirmed that it stopped" in message(status, "PodsReady")
        assert "It is not deleted by force, because its node still reports it" in message(status, "PodsReady")
        assert team.api.get(f"{team.pods}/{POD}")
        remove_pod(team.api, team.namespace, POD)
        team.until_phase("Suspended")


def test_a_pod_that_its_node_has_reported_since_is_not_deleted_by_force(plane: ControlPlane, team: Team) -> None:
    add_node(team, "back")
    body: Json = {"apiVersion": "v1", "kind": "Pod", "metadata": named(team, "p")}
    spec = {"nodeName": "back", "containers": [{"name": "c", "image": "x"}]}  # bound, so that no scheduler writes it
    old = team.api.create(body | {"spec": spec})
    new = run_pod(team.api, team.namespace, "p")
    uid, key = old["metadata"]["uid"], Key(team.namespace, "p")

    async def deletions() -> None:
        cluster = KubernetesCluster(Settings(kubeconfig=plane.cluster.kubeconfig), BACKEND)
        try:
            for wrong in ((uid, version_of(old)), ("another", version_of(new))):
                with pytest.raises(Conflict):
                    await cluster.delete_pod(key, *wrong)
            assert team.api.get(f"{team.pods}/p")
            assert await cluster.delete_pod(key, uid, version_of(new)) is None
            assert await cluster.delete_pod(key, uid, version_of(new)) is None, "it is gone already"
        finally:
            await cluster.close()

    asyncio.run(deletions())
    assert team.api.find(f"{team.pods}/p") is None


def test_the_next_run_avoids_a_node_that_cannot_give_its_devices_until_nothing_else_fits(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team):
        add_node(team, "broken")
        team.submit(SMALL | {"lifecycle.maxRestarts": 0})
        assert node_of(team, "sample-1") == "broken"
        reject_pod(team.api, team.namespace, POD, "UnexpectedAdmissionError", BROKEN)
        status = team.until(lambda s: condition(s, "PodsReady") == ("False", "Unschedulable"))
        assert status["avoidedNodes"] == [{"name": "broken", "reason": "UnexpectedAdmissionError", "run": 1}]
        assert "The run avoids broken (UnexpectedAdmissionError in run 1)." in message(status, "PodsReady")
        add_node(team, "spare")
        assert node_of(team, "sample-2") == "spare"
        reject_pod(team.api, team.namespace, "sample-2-worker-0", "UnexpectedAdmissionError", BROKEN)
        team.until(lambda s: s["run"] == 3 and condition(s, "PodsReady") == ("False", "Unschedulable"))
        age(team, "sample-3-worker-0", PATIENCE_SECONDS)
        assert node_of(team, "sample-4") in ("broken", "spare")
        assert "avoidedNodes" not in team.until(lambda s: s["run"] == 4)


def age(team: Team, pod: str, seconds: float) -> None:
    """The scheduler has found no node for the pod for so long already."""
    since = (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = f"{team.pods}/{pod}"
    found = wait_for(team.api, path, lambda pod: pod and (pod["status"].get("conditions") or []))
    assert found is not None
    aged = [c | {"lastTransitionTime": since} for c in found["status"]["conditions"] if c["type"] == "PodScheduled"]
    team.api.patch(f"{path}/status", {"status": {"conditions": aged}})
