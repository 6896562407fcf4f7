"""An administrator who has said everything that the built-in network profiles ask for, and allowed all of them."""

from __future__ import annotations

from builders import Json, resource
from finetune_plan import network_files
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.network_profile import profile_of
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload

VALUES: dict[str, Json] = {
    "aks-nd": {"topology": "nvidia-topology"},
    "aws-efa": {"devices": 32},
    "coreweave-nvl72": {"computeDomainClaim": "channel"},
    "gke-dranet": {"claimTemplate": "all-rdma"},
    "nebius": {"resource": "rdma/ib"},
    "nvidia-hostdev": {"devices": 2, "networks": "hostdev,hostdev"},
    "nvidia-shared": {"networks": "rdma-net"},
    "nvidia-sriov": {"resource": "nvidia.com/mlnxnics", "devices": 2, "networks": "ib,ib"},
    "oke-host": {"hcas": "mlx5_0,mlx5_1"},
    "oke-vf": {"devices": 2, "networks": "rdma-vf,rdma-vf"},
    "together": {"resource": "rdma/ib"},
}
SETTINGS = PlanSettings(
    networks={name: {"values": values} for name, values in VALUES.items()},
    privileged_networks=network_files.names(),
)


def job(profile: str, settings: PlanSettings = SETTINGS) -> Json:
    """A job on two whole nodes that names the profile."""
    gpus = profile_of(profile, settings.networks).gpus_per_node or 8
    compute = {"gpu_type": "H100", "nodes": 2, "gpus_per_node": gpus}
    return resource({"compute": compute, "network.profile": profile})


def manifest(profile: str, settings: PlanSettings = SETTINGS) -> Json:
    """What becomes of it."""
    verdict = validate(job(profile, settings), settings)
    assert verdict.problems == ()
    assert verdict.resolution is not None
    return BACKEND.render(workload(verdict.resolution, settings), "team")


def pod(manifest: Json) -> Json:
    """Its pod template."""
    found: Json = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return found
