"""A Workload as a PyTorchJob of Training Operator 1.9.

What this version of the Training Operator does with each field, and which of its defects the operator makes
up for, stands in docs/adr/0005.
"""

from __future__ import annotations

import copy
from typing import Any

from finetune_api import labels
from finetune_api.logic import find
from finetune_operator.plan.pods import pod_template
from finetune_operator.plan.workload import Workload


def render(work: Workload, namespace: str | None = None, owner: dict[str, Any] | None = None) -> dict[str, Any]:
    """The manifest. `owner` is an ownerReference, absent in an offline rendering."""
    template = pod_template(work)
    replica = {"restartPolicy": "Never", "template": template}
    # Master.replicas has to be written out, and Worker must be absent rather than empty: the webhook of the
    # Training Operator runs before its own defaults.
    replicas = {"Master": {"replicas": 1, **replica}}
    if work.nodes > 1:
        replicas["Worker"] = {"replicas": work.nodes - 1, **copy.deepcopy(replica)}
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


def _labels(work: Workload) -> dict[str, str]:
    ours = {k: v for k, v in work.labels.items() if k in (labels.JOB, labels.JOB_UID, labels.RUN)}
    queue, priority = find(work.spec, "queue.name"), find(work.spec, "queue.priorityClass")
    return (
        ours
        | ({labels.KUEUE_QUEUE: queue} if queue else {})
        | ({labels.KUEUE_PRIORITY: priority} if priority else {})
    )
