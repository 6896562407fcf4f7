"""Nodes without machines: GPU and RDMA nodes whose pods run, and if wished end, on paper only.

For scheduling, scale and the life of jobs. Needs a control plane with the scheduler, or pods whose nodeName is set.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from testbed.api import Json
from testbed.build import extra, program
from testbed.control_plane import ControlPlane
from testbed.process import Process, free_port, listens
from testbed.watch import wait_for

LABEL = {"testbed/kind": "kwok"}
GPU_NODE: Mapping[str, str] = {"nvidia.com/gpu": "8", "rdma/ib": "8"}
_TERMINATED = """
{{ $now := Now }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: false
  started: false
  restartCount: 0
  state:
    terminated: {exitCode: EXIT_CODE, reason: REASON, message: MESSAGE, startedAt: {{ $now }}, finishedAt: {{ $now }}}
{{ end }}
phase: PHASE
"""


@dataclass(frozen=True)
class Ending:
    """How the pods of PyTorchJobs end by themselves: after_s seconds of running, with a code and a message."""

    after_s: float
    exit_code: int = 0
    message: str = ""


@dataclass(frozen=True)
class Node:
    """A node to be; resources come on top of 64 CPUs, 1 TiB of memory and 110 pods."""

    name: str
    resources: Mapping[str, str] = field(default_factory=lambda: dict(GPU_NODE))
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> Json:
        """The Node object, not Ready until kwok says so."""
        capacity = {"cpu": "64", "memory": "1Ti", "pods": "110", **self.resources}
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", **LABEL, **self.labels}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "status": {"capacity": capacity, "allocatable": capacity},
        }


def start_kwok(plane: ControlPlane, nodes: Sequence[Node], *, ending: Ending | None = None) -> Process:
    """Create the nodes and run kwok until `plane` ends; returns when every node is Ready.

    Without `ending` pods run until they are deleted, or until the test writes another status.
    """
    for node in nodes:
        plane.cluster.api.create(node.manifest())
    process = plane.run("kwok", _process(plane, ending))
    for node in nodes:
        path = f"/api/v1/nodes/{node.name}"
        wait_for(plane.cluster.api, path, _is_ready)
        # The not-ready taint that every new node gets: only the controller manager would take it away.
        plane.cluster.api.patch(path, {"spec": {"taints": None}})
    return process


def _process(plane: ControlPlane, ending: Ending | None) -> Process:
    stages = [path.read_text() for path in sorted(extra("stages").glob("*.yaml"))]
    if ending:
        stages.append(json.dumps(_stage(ending)))
    config = plane.folder / "kwok.yaml"
    config.write_text("\n---\n".join(stages))
    port = free_port()
    selector = ",".join(f"{key}={value}" for key, value in LABEL.items())
    command = [
        str(program("kwok")),
        f"--kubeconfig={plane.cluster.kubeconfig}",
        f"--config={config}",
        f"--manage-nodes-with-label-selector={selector}",
        f"--server-address=127.0.0.1:{port}",
        "--node-lease-duration-seconds=40",
    ]
    return Process(command, plane.folder / "kwok.log", ready=lambda: listens(port))


def _stage(ending: Ending) -> Json:
    """The stock stage for ended pods knows only Jobs; this one matches the pods of PyTorchJobs."""
    phase, reason = ("Failed", "Error") if ending.exit_code else ("Succeeded", "Completed")
    words = {
        "EXIT_CODE": str(ending.exit_code),
        "REASON": reason,
        "PHASE": phase,
        "MESSAGE": json.dumps(ending.message),
    }
    template = _TERMINATED
    for word, value in words.items():
        template = template.replace(word, value)
    matches = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Running"]},
        {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["PyTorchJob"]},
    ]
    spec: Json = {
        "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
        "selector": {"matchExpressions": matches},
        "delay": {"durationMilliseconds": round(ending.after_s * 1000)},
        "next": {"statusTemplate": template},
    }
    metadata = {"name": "pytorchjob-pod-end"}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": metadata, "spec": spec}


def _is_ready(node: Json | None) -> bool:
    conditions = ((node or {}).get("status") or {}).get("conditions") or []
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
