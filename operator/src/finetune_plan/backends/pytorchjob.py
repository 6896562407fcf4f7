"""A Workload as a PyTorchJob of Training Operator 1.9.

What this version of the Training Operator does with each field, and which of its defects the operator makes
up for, stands in docs/adr/0005.
"""

from __future__ import annotations

from typing import Any

from finetune_api.resource import names
from finetune_api.runtime import protocol
from finetune_plan.pods import pod_template
from finetune_plan.workload import RENDEZVOUS_PORT, Workload, replica


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
    """Variables that the Training Operator sets only where there is a master."""
    index = {"fieldRef": {"fieldPath": f"metadata.labels['{names.REPLICA_INDEX_LABEL}']"}}
    return [
        {"name": protocol.MASTER_ADDR_ENV, "value": replica(work, 0)},
        {"name": protocol.MASTER_PORT_ENV, "value": str(RENDEZVOUS_PORT)},
        {"name": protocol.NODE_RANK_ENV, "valueFrom": index},
    ]


def _labels(work: Workload) -> dict[str, str]:
    ours = {k: v for k, v in work.labels.items() if k in (names.JOB_LABEL, names.JOB_UID_LABEL, names.RUN_LABEL)}
    queue, priority = work.job.queue.value, work.job.queue_priority.value
    return (
        ours
        | ({names.KUEUE_QUEUE_LABEL: queue} if queue else {})
        | ({names.KUEUE_PRIORITY_LABEL: priority} if priority else {})
    )
