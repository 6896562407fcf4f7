"""A Workload as a PyTorchJob of Training Operator 1.9.

What this version of the Training Operator does with each field, and which of its defects the operator makes
up for, stands in docs/adr/0005.
"""

from __future__ import annotations

from typing import Any

from finetune_api import labels, run
from finetune_api.logic import find
from finetune_operator.plan.pods import pod_template
from finetune_operator.plan.workload import RENDEZVOUS_PORT, Workload, replica


def render(work: Workload, namespace: str | None = None, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest. `owner` is an ownerReference, absent in an offline rendering."""
    template = pod_template(work)
    template["spec"]["containers"][0]["env"] += _rendezvous(work)
    # Workers alone: beside a master they would get an init container that many clusters refuse (docs/adr/0011).
    replicas = {"Worker": {"replicas": work.nodes, "restartPolicy": "Never", "template": template}}
    metadata = {
        "name": work.name,
        "namespace": namespace,
        "labels": _labels(work),
        "ownerReferences": owner and [owner],
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {k: v for k, v in metadata.items() if v},
        "spec": {
            "nprocPerNode": str(work.processes_per_node),
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": replicas,
        },
    }


def _rendezvous(work: Workload) -> list[dict[str, Any]]:
    """What the Training Operator tells pods only where there is a master."""
    index = {"fieldRef": {"fieldPath": f"metadata.labels['{labels.REPLICA_INDEX}']"}}
    return [
        {"name": run.MASTER_ADDR_ENV, "value": replica(work, 0)},
        {"name": run.MASTER_PORT_ENV, "value": str(RENDEZVOUS_PORT)},
        {"name": run.NODE_RANK_ENV, "valueFrom": index},
    ]


def _labels(work: Workload) -> dict[str, str]:
    ours = {k: v for k, v in work.labels.items() if k in (labels.JOB, labels.JOB_UID, labels.RUN)}
    queue, priority = find(work.spec, "queue.name"), find(work.spec, "queue.priorityClass")
    return (
        ours
        | ({labels.KUEUE_QUEUE: queue} if queue else {})
        | ({labels.KUEUE_PRIORITY: priority} if priority else {})
    )
