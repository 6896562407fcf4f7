"""What the real Training Operator makes of our PyTorchJobs under Pod Security `restricted` (docs/adr/0011)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from testbed.api import Json
from testbed.cluster import Cluster
from testbed.fixtures import cluster, control_plane
from testbed.watch import wait_for_all

__all__ = ["cluster", "control_plane"]  # fixtures
GOLDEN = Path(__file__).parents[1] / "golden" / "two-nodes-of-eight" / "pytorchjob.yaml"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
def restricted(cluster: Cluster) -> str:
    return cluster.namespace("restricted", RESTRICTED)


def run(namespace: str) -> Json:
    """Our own manifest of a run on two nodes."""
    manifest: Json = yaml.safe_load(GOLDEN.read_text())
    manifest["metadata"]["namespace"] = namespace
    return manifest


def test_both_pods_of_our_run_are_admitted_and_know_where_to_meet(cluster: Cluster, restricted: str) -> None:
    created = cluster.api.create(run(restricted))
    first, second = wait_for_all(cluster.api, f"/api/v1/namespaces/{restricted}/pods", lambda pods: len(pods) == 2)
    services = wait_for_all(cluster.api, f"/api/v1/namespaces/{restricted}/services", lambda found: len(found) == 2)
    meeting = f"{created['metadata']['name']}-worker-0"
    assert meeting in {service["metadata"]["name"] for service in services}
    for pod in (first, second):
        assert "initContainers" not in pod["spec"]
        environment = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][0]["env"]}
        assert (environment["PET_MASTER_ADDR"], environment["PET_NNODES"]) == (meeting, "2")


def test_beside_a_master_the_worker_is_refused_for_a_container_that_is_not_ours(
    cluster: Cluster, restricted: str
) -> None:
    manifest = run(restricted)
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    replicas["Worker"]["replicas"] = 1
    replicas["Master"] = copy.deepcopy(replicas["Worker"])
    cluster.api.create(manifest)
    events = wait_for_all(
        cluster.api,
        f"/api/v1/namespaces/{restricted}/events",
        lambda found: any(event["reason"] == "FailedCreatePod" for event in found),
    )
    [said] = {event["message"] for event in events if event["reason"] == "FailedCreatePod"}
    assert 'violates PodSecurity "restricted' in said
    assert 'container "init-pytorch" must set securityContext' in said
