"""Runs as PyTorchJobs of Training Operator 1.9.

What this version of the Training Operator does with each field, and which of its defects the operator makes
up for, stands in docs/adr/0005.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.resource import names
from finetune_api.validation.predicates import find
from finetune_plan.model import ObservedRun
from finetune_plan.pods import TrainerContainer, pod_template
from finetune_plan.workload import Workload

from . import parts
from .protocol import Right, RunRef

RANK_LABEL = "training.kubeflow.org/replica-index"
"""Label that the Training Operator gives to pods: with workers alone, the rank of the node."""


class PyTorchJobs:
    """The backend of kubeflow.org/v1 PyTorchJobs."""

    kind = "PyTorchJob"
    group = "kubeflow.org"
    version = "v1"
    plural = "pytorchjobs"
    controller = "Training Operator"
    install = "Install the Training Operator 1.9"
    inspect = "kubectl get pods -A -l control-plane=kubeflow-training-operator"
    container = "pytorch"  # the Training Operator looks for this name, and for the port's
    port = "pytorchjob-port"
    suspend_key = "spec.runPolicy.suspend"
    refusal_reason = "FailedCreatePod"
    refusal_component = "pytorchjob-controller"
    rights: tuple[Right, ...] = (Right("kubeflow.org", "pytorchjobs", ("get", "list", "watch", "create", "delete")),)

    def render(
        self, work: Workload, namespace: str | None = None, owner: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        # The Training Operator itself says where rank 0 is only where there is a master. Workers alone: beside a
        # master they would get an init container that many clusters refuse (docs/adr/0011).
        env = parts.rendezvous(self.host(work.name, 0), RANK_LABEL)
        template = pod_template(work, TrainerContainer(self.container, self.port, env))
        replicas = {"Worker": {"replicas": work.nodes, "restartPolicy": "Never", "template": template}}
        return {
            "apiVersion": f"{self.group}/{self.version}",
            "kind": self.kind,
            "metadata": parts.metadata(work, namespace, owner),
            "spec": {
                "nprocPerNode": str(work.processes_per_node),
                "runPolicy": {"cleanPodPolicy": "Running"} | parts.suspend(work),
                "pytorchReplicaSpecs": replicas,
            },
        }

    def observe(self, raw: Mapping[str, Any]) -> ObservedRun:
        return parts.observed_run(raw, self.suspend_key, {"Succeeded", "Failed"}, reconciled=self.is_reconciled(raw))

    def is_reconciled(self, raw: Mapping[str, Any]) -> bool:
        return bool(find(raw, "status.conditions"))

    def node_rank(self, pod: Mapping[str, Any]) -> int:
        return names.label_number(pod["metadata"], RANK_LABEL)

    def host(self, run: str, node_rank: int) -> str:
        """Of a pod and of its Service alike."""
        return f"{run}-worker-{node_rank}"

    def names_pod(self, run: str, node_rank: int, name: str) -> bool:
        return name == self.host(run, node_rank)

    def refused_run(self, event: Mapping[str, Any]) -> RunRef | None:
        return parts.refused_run(event, self)
