"""What Training Operator 1.9.4 leaves undone, made up for: each against its real controller.

Its own deadline, the deletion of one pod and the failure of one are in test_life.py; a pod that is replaced while
nobody looks is in test_disturbed.py; workers that outlive the success are in tests/chaos.
"""

from __future__ import annotations

from http import HTTPStatus

import pytest

from finetune_api.runtime.exits import Exit
from operating.nodes import ON_GKE, add_node, node_of, say_ready
from operating.team import SMALL, Team, condition, message
from testbed.api import Api, ApiError
from testbed.control_plane import ControlPlane
from testbed.pods import run_pod
from testbed.watch import wait_for_all


@pytest.fixture
def tenant(scheduling: ControlPlane) -> Team:
    """A namespace on that plane. No node is there, and no pod of an earlier test that would take the first one."""
    api = scheduling.cluster.api
    remove_all(api, "/apis/finetune.dev/v1alpha1", "finetunejobs")
    wait_for_all(api, "/apis/kubeflow.org/v1/pytorchjobs", lambda left: not left)
    remove_all(api, "/api/v1", "pods", gracePeriodSeconds="0")
    for node in api.items("/api/v1/nodes"):
        api.delete(f"/api/v1/nodes/{node['metadata']['name']}")
    return Team(api, scheduling.cluster.namespace())


def remove_all(api: Api, version: str, plural: str, **query: str) -> None:
    for each in api.items(f"{version}/{plural}"):
        metadata = each["metadata"]
        path = f"{version}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
        try:
            api.delete(path, **query)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:  # it may go by itself
                raise


def test_a_job_that_fits_nowhere_says_what_the_scheduler_says(tenant: Team) -> None:
    add_node(tenant, "tainted", {"key": "maintenance", "value": "now", "effect": "NoSchedule"})
    tenant.submit(SMALL)
    status = tenant.until(lambda s: condition(s, "PodsReady") == ("False", "Unschedulable"))
    said = message(status, "PodsReady")
    assert "0 of 1 pods are running. Pod sample-1-worker-0 is waiting: Unschedulable: 0/1 nodes are available" in said
    assert "untolerated taint" in said
    assert "pods.tolerations" in said


def test_gpus_are_found_by_the_label_of_a_cloud_where_no_product_is_known(tenant: Team) -> None:
    add_node(tenant, "shared", labels=ON_GKE | {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-SHARED"})
    tenant.submit(SMALL)
    status = tenant.until(lambda s: condition(s, "PodsReady") == ("False", "Unschedulable"))
    assert "node affinity" in message(status, "PodsReady")
    assert "or cloud.google.com/gke-accelerator (nvidia-h100-80gb, nvidia-h100-mega-80gb) or" in message(
        status, "PodsReady"
    )
    add_node(tenant, "gke", {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, labels=ON_GKE)
    assert node_of(tenant, "sample-1") == "gke"


def test_a_claim_that_is_not_there_or_has_no_volume_is_named(tenant: Team) -> None:
    add_node(tenant, "free")
    tenant.submit({"compute.nodes": 1})
    status = tenant.until(lambda s: condition(s, "PodsReady") == ("False", "ClaimMissing"))
    assert 'persistentvolumeclaim "' in message(status, "PodsReady")
    assert "Create the PersistentVolumeClaim" in message(status, "PodsReady")
    tenant.claim("rows")
    tenant.claim("models")
    status = tenant.until(lambda s: condition(s, "PodsReady") == ("False", "ClaimUnbound"))
    assert "StorageClass" in message(status, "PodsReady")


def test_a_job_whose_node_is_lost_goes_on_on_another(tenant: Team) -> None:
    add_node(tenant, "dying")
    tenant.submit(SMALL)
    assert node_of(tenant, "sample-1") == "dying"
    run_pod(tenant.api, tenant.namespace, "sample-1-worker-0")
    tenant.until(lambda s: condition(s, "PodsReady")[0] == "True")
    add_node(tenant, "spare")
    say_ready(tenant, "dying", ready=False)
    status = tenant.until(lambda s: condition(s, "Training")[1] == "Restarting")
    said = message(status, "Training").removeprefix("The cluster removed pod sample-1-worker-0: ")
    assert said.startswith("DeletionByTaintManager: Taint manager: deleting due to NoExecute taint. The next run")
    tenant.api.delete(f"{tenant.pods}/sample-1-worker-0", gracePeriodSeconds="1")  # its grace is five minutes
    status = tenant.until(lambda s: condition(s, "PodsReady")[1] == "PodOverdue")
    words = f"run `kubectl delete pod sample-1-worker-0 --force -n {tenant.namespace}`."
    assert "its node dying has not confirmed" in message(status, "PodsReady")
    assert words in message(status, "PodsReady")
    # The dead node cannot say that the pod has ended; an administrator who knows does.
    tenant.api.delete(f"{tenant.pods}/sample-1-worker-0", gracePeriodSeconds="0")
    assert node_of(tenant, "sample-2") == "spare"
    assert not tenant.until(lambda s: s["run"] == 2).get("restarts"), "a lost node is not the job's fault"


def test_the_failure_budget_is_ours_and_ends_the_job(team: Team) -> None:
    team.submit({"lifecycle.maxRestarts": 1})
    team.start("sample-1")
    team.end("sample-1-worker-1", Exit.CRASHED, "boom")
    team.start("sample-2")
    team.end("sample-2-worker-0", Exit.CRASHED, "boom again")
    status = team.until_phase("Failed")
    assert condition(status, "Failed") == ("True", "TrainerCrashed")
    assert "Pod sample-2-worker-0: boom again" in message(status, "Failed")
    assert status["restarts"] == 1
    assert team.run_names() == ["sample-2"]
