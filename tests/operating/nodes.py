"""Nodes that the test plays: what they have, whether they answer, and which pods the scheduler gives them."""

from __future__ import annotations

from collections.abc import Mapping

from builders import Json
from operating.team import Team
from testbed.kwok import GPU_NODE, Node
from testbed.watch import wait_for, wait_for_all

LABELS = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}


ON_GKE = {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}


def add_node(
    team: Team, name: str, *taints: Json, resources: Mapping[str, str] = GPU_NODE, labels: Mapping[str, str] = LABELS
) -> None:
    """A node with GPUs that says that it is ready."""
    team.api.create(Node(name, resources, labels).manifest() | {"spec": {"taints": list(taints)}})
    say_ready(team, name, ready=True)
    wait_for(team.api, f"/api/v1/nodes/{name}", lambda node: node and _taints(node) == {t["key"] for t in taints})


def say_ready(team: Team, name: str, *, ready: bool) -> None:
    _report(team, f"/api/v1/nodes/{name}", str(ready))


def fall_silent(team: Team, name: str, *pods: str) -> None:
    """What the node controller writes 50 s after a kubelet's last word, of its node and of its pods."""
    for pod in pods:
        _report(team, f"{team.pods}/{pod}", "False")
    _report(team, f"/api/v1/nodes/{name}", "Unknown")


def _report(team: Team, path: str, ready: str) -> None:
    others = [c for c in team.api.get(path)["status"].get("conditions") or () if c["type"] != "Ready"]
    team.api.patch(f"{path}/status", {"status": {"conditions": [*others, {"type": "Ready", "status": ready}]}})


def _taints(node: Json) -> set[str]:
    return {t["key"] for t in node["spec"].get("taints") or ()}


def node_of(team: Team, run: str) -> str:
    """Where the one pod of a run is bound."""
    [pod] = wait_for_all(
        team.api, team.pods, lambda pods: len(pods) == 1 and pods[0]["spec"].get("nodeName"),
        labelSelector=f"training.kubeflow.org/job-name={run}",
    )  # fmt: skip
    name: str = pod["spec"]["nodeName"]
    return name
