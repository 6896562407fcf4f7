"""The test bed itself: real servers answer, the real Training Operator makes pods, nothing runs on afterwards."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.api import ApiError, Json, path_of
from testbed.build import KUBERNETES
from testbed.cluster import Cluster, existing_cluster
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, namespace
from testbed.kwok import Ending, Node, start_kwok
from testbed.pods import end_pod, run_pod
from testbed.process import Process, ProcessError, free_port
from testbed.training_operator import start_training_operator
from testbed.watch import WaitError, wait_for, wait_for_all

__all__ = ["cluster", "control_plane", "namespace"]  # fixtures


def pytorch_job(namespace: str, *, workers: int = 1, container: str = "pytorch", gpus: int = 0) -> Json:
    """A PyTorchJob of one master and some workers, eight processes each; a pod that fails is not run again."""
    resources: Json = {"limits": {"nvidia.com/gpu": gpus, "rdma/ib": gpus} if gpus else {}}
    template: Json = {"spec": {"containers": [{"name": container, "image": "trainer:test", "resources": resources}]}}
    replica: Json = {"restartPolicy": "Never", "template": template}
    replicas: Json = {"Master": replica | {"replicas": 1}}
    if workers:
        replicas["Worker"] = replica | {"replicas": workers}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "job", "namespace": namespace},
        "spec": {"nprocPerNode": "8", "pytorchReplicaSpecs": replicas},
    }


def conditions_of(item: Json | None) -> set[str]:
    conditions = ((item or {}).get("status") or {}).get("conditions") or []
    return {entry["type"] for entry in conditions if entry["status"] == "True"}


def all_ended(pods: list[Json]) -> bool:
    return len(pods) == 2 and all(pod["status"]["phase"] in {"Succeeded", "Failed"} for pod in pods)


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


def test_a_job_succeeds_when_the_node_is_played_by_the_test(cluster: Cluster, namespace: str) -> None:
    job = cluster.api.create(pytorch_job(namespace, workers=0))
    wait_for_all(cluster.api, f"/api/v1/namespaces/{namespace}/pods", lambda pods: len(pods) == 1)
    run_pod(cluster.api, namespace, "job-master-0")
    wait_for(cluster.api, path_of(job), lambda found: "Running" in conditions_of(found))
    end_pod(cluster.api, namespace, "job-master-0", message="loss 1.5")
    wait_for(cluster.api, path_of(job), lambda found: "Succeeded" in conditions_of(found))
    pod = cluster.api.get(f"/api/v1/namespaces/{namespace}/pods/job-master-0")
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == "loss 1.5"


@pytest.mark.parametrize(
    ("ending", "condition"),
    [
        pytest.param(Ending(0.5), "Succeeded", id="a job succeeds when its pods end well"),
        pytest.param(Ending(0.5, exit_code=3, message="no data"), "Failed", id="a job fails when its pods fail"),
    ],
)
def test_jobs_live_and_end_on_paper_nodes(tmp_path: Path, ending: Ending, condition: str) -> None:
    with ControlPlane(tmp_path, scheduler=True) as plane:
        start_training_operator(plane)
        start_kwok(plane, [Node("gpu-0"), Node("gpu-1")], ending=ending)
        api, namespace = plane.cluster.api, plane.cluster.namespace()
        job = api.create(pytorch_job(namespace, gpus=8))
        wait_for(api, path_of(job), lambda found: condition in conditions_of(found))
        pods = wait_for_all(api, f"/api/v1/namespaces/{namespace}/pods", all_ended)
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in pods]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"gpu-0", "gpu-1"}, "eight GPUs a node: one pod a node"
    assert {(entry["exitCode"], entry.get("message", "")) for entry in ended} == {(ending.exit_code, ending.message)}


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


def test_nothing_runs_on_after_the_test_run_itself_was_killed(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from testbed.process import Process
with Process(["sleep", "60"], Path(sys.argv[1]), ready=lambda: True) as server:
    while Path(f"/proc/{server.pid}/comm").read_text() != "sleep\\n":
        pass  # setpriv asks for the signal, and then becomes what it was told to run
    print(server.pid, flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        watch = os.pidfd_open(pid)
        run.kill()
    try:
        assert select.select([watch], [], [], 5)[0], f"process {pid} outlived the run that started it"
    finally:
        os.close(watch)


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


def test_a_port_is_given_once_while_its_process_lives() -> None:
    port = free_port()
    with pytest.raises(ProcessError, match=f"no free loopback port found in {port}-{port}"):
        free_port([port])
    ask = f"from testbed.process import free_port; print(free_port(range({port}, {port + 9})))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    other = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert int(other.stdout) in range(port + 1, port + 9), "another suite asks at the same time"


def test_a_port_is_given_to_one_of_the_threads_that_ask_for_it() -> None:
    ask = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from testbed import process

sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as threads:
    meet = threading.Barrier(8)
    for nowhere in range(100_000, 100_100):
        given = threads.map(lambda port: (meet.wait(), process._reserve(port))[1], [nowhere] * 8)
        assert sum(given) == 1, "two threads got one port"
    assert process._reservations.cache_info().misses == 1, "two threads opened the file: to close one unlocks all"
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
