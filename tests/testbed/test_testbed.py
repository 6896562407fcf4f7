"""The test bed itself: real servers answer, the real Training Operator makes pods, nothing runs on afterwards."""

import os
from pathlib import Path

import pytest

from testbed.api import ApiError, Json
from testbed.build import KUBERNETES
from testbed.cluster import Cluster, existing_cluster
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, namespace
from testbed.process import Process, ProcessError
from testbed.training_operator import start_training_operator
from testbed.watch import WaitError, wait_for, wait_for_all

__all__ = ["cluster", "control_plane", "namespace"]  # fixtures


def pytorch_job(namespace: str, *, workers: int = 1, container: str = "pytorch") -> Json:
    """A PyTorchJob of one master and some workers, eight processes each."""
    template: Json = {"spec": {"containers": [{"name": container, "image": "trainer:test"}]}}
    replicas: Json = {"Master": {"replicas": 1, "template": template}}
    if workers:
        replicas["Worker"] = {"replicas": workers, "template": template}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "job", "namespace": namespace},
        "spec": {"nprocPerNode": "8", "pytorchReplicaSpecs": replicas},
    }


def environment_of(pod: Json) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}


def test_the_api_server_is_the_pinned_version(cluster: Cluster) -> None:
    assert cluster.api.get("/version")["gitVersion"] == KUBERNETES


def test_the_training_operator_gives_every_pod_its_rank(cluster: Cluster, namespace: str) -> None:
    cluster.api.create(pytorch_job(namespace))
    pods = wait_for_all(cluster.api, f"/api/v1/namespaces/{namespace}/pods", lambda pods: len(pods) == 2)
    seen = {pod["metadata"]["name"]: environment_of(pod) for pod in pods}
    assert {name: env["PET_NODE_RANK"] for name, env in seen.items()} == {"job-master-0": "0", "job-worker-0": "1"}
    assert {env["PET_MASTER_ADDR"] for env in seen.values()} == {"job-master-0"}
    assert {(env["PET_NNODES"], env["PET_NPROC_PER_NODE"], env["WORLD_SIZE"]) for env in seen.values()} == {
        ("2", "8", "16")
    }


def test_the_pods_of_a_deleted_job_are_collected(cluster: Cluster, namespace: str) -> None:
    job = cluster.api.create(pytorch_job(namespace, workers=0))
    pods = f"/api/v1/namespaces/{namespace}/pods"
    wait_for_all(cluster.api, pods, lambda pods: len(pods) == 1)
    cluster.api.delete(f"/apis/kubeflow.org/v1/namespaces/{namespace}/pytorchjobs/{job['metadata']['name']}")
    wait_for_all(cluster.api, pods, lambda pods: not pods)


def test_a_service_account_holds_no_rights_it_was_not_given(cluster: Cluster, namespace: str) -> None:
    limited = Cluster(cluster.api, cluster.service_account(namespace, "nobody"), cluster.folder)
    done = limited.kubectl("get", "pods")
    assert done.returncode == 1
    assert f'User "system:serviceaccount:{namespace}:nobody" cannot list resource "pods"' in done.stderr


def test_the_audit_log_names_who_wrote_what(control_plane: ControlPlane) -> None:
    name = control_plane.cluster.namespace()
    writes = [
        (entry["user"]["username"], entry["verb"])
        for entry in control_plane.requests()
        if entry["objectRef"].get("name") == name and entry["objectRef"]["resource"] == "namespaces"
    ]
    assert ("admin", "create") in writes


def test_the_training_operators_webhook_refuses_when_it_is_wanted(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        start_training_operator(plane, webhook=True)
        namespace = plane.cluster.namespace()
        with pytest.raises(ApiError) as refused:
            plane.cluster.api.create(pytorch_job(namespace, container="main"))
    assert refused.value.status == 403
    assert "must have at least one container with name pytorch" in refused.value.message


def test_a_restarted_api_server_still_holds_its_objects(tmp_path: Path) -> None:
    with ControlPlane(tmp_path) as plane:
        name = plane.cluster.namespace()
        plane.apiserver.stop(grace_s=0)
        assert not plane.cluster.api.answers("/readyz")
        plane.apiserver.start()
        plane.apiserver.wait_ready()
        assert plane.cluster.api.get(f"/api/v1/namespaces/{name}")["status"]["phase"] == "Active"


def test_an_existing_cluster_stands_in_by_its_kubeconfig(cluster: Cluster, tmp_path: Path) -> None:
    with existing_cluster(cluster.kubeconfig, tmp_path) as other:
        name = other.namespace()
        assert cluster.api.find(f"/api/v1/namespaces/{name}") is not None


def test_nothing_runs_on_after_a_test_that_failed(tmp_path: Path) -> None:
    pids: list[int] = []

    def failing_test() -> None:
        with ControlPlane(tmp_path) as plane:
            pids.extend(process.pid for process in plane.processes.values())
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        failing_test()
    assert len(pids) == 2
    assert [pid for pid in pids if _runs(pid)] == []


def test_a_server_that_does_not_come_up_shows_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="unknown flag: --no-such-flag") as failed:
        ControlPlane(tmp_path, flags=["--no-such-flag"]).__enter__()
    assert "kube-apiserver ended with code" in str(failed.value)


def test_a_server_that_never_gets_ready_is_ended(tmp_path: Path) -> None:
    pids: list[int] = []

    def never() -> bool:
        pids.append(process.pid)
        return False

    process = Process(["sleep", "60"], tmp_path / "log", ready=never, timeout_s=0.1)
    with pytest.raises(ProcessError, match="sleep was not ready after 0 s"):
        process.__enter__()
    assert pids
    assert not _runs(pids[0])


def test_a_wait_that_is_not_fulfilled_shows_the_last_state(cluster: Cluster) -> None:
    with pytest.raises(WaitError, match='"name": "default"'):
        wait_for(cluster.api, "/api/v1/namespaces/default", lambda found: found is None, timeout_s=0.5)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
