"""Parts that the manifests and observations of several backends have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.resource import names
from finetune_api.runtime import protocol
from finetune_api.validation.predicates import find
from finetune_plan.model import ObservedRun
from finetune_plan.workload import RENDEZVOUS_PORT, Workload

from .protocol import Backend, RunRef


def metadata(work: Workload, namespace: str | None, owner: dict[str, Any] | None) -> dict[str, Any]:
    """Metadata of a run."""
    found = {
        "name": work.name,
        "namespace": namespace,
        "labels": _labels(work),
        "ownerReferences": owner and [owner],
    }
    return {k: v for k, v in found.items() if v}


def suspend(work: Workload) -> dict[str, bool]:
    """A run that names a queue waits for it from the start: where nothing manages the queue, it uses no quota."""
    return {"suspend": True} if work.job.queue.value else {}


def rendezvous(address: str, rank_label: str) -> list[dict[str, Any]]:
    """Environment of a pod that has its node rank as a label."""
    rank = {"fieldRef": {"fieldPath": f"metadata.labels['{rank_label}']"}}
    return [
        {"name": protocol.MASTER_ADDR_ENV, "value": address},
        {"name": protocol.MASTER_PORT_ENV, "value": str(RENDEZVOUS_PORT)},
        {"name": protocol.NODE_RANK_ENV, "valueFrom": rank},
    ]


def observed_run(raw: Mapping[str, Any], suspend_key: str, over: set[str], *, reconciled: bool) -> ObservedRun:
    """A run from its object. `over`: types of the conditions that a run has in the end."""
    found, conditions = raw["metadata"], find(raw, "status.conditions") or ()
    return ObservedRun(
        name=found["name"],
        number=names.label_number(found, names.RUN_LABEL),
        deleting="deletionTimestamp" in found,
        suspended=bool(find(raw, suspend_key)),
        uid=found["uid"],
        created=found.get("creationTimestamp", ""),
        reconciled=reconciled,
        over=any(c.get("type") in over and c.get("status") == "True" for c in conditions),
    )


def refused_run(event: Mapping[str, Any], backend: Backend) -> RunRef | None:
    """The run that an Event is about, where the controller tells it of the run's own object."""
    about = event["involvedObject"]
    if about.get("kind") != backend.kind or find(event, "source.component") != backend.refusal_component:
        return None
    return RunRef(about["name"], about["uid"])


def _labels(work: Workload) -> dict[str, str]:
    """Ours, and those by which Kueue finds its queue."""
    ours = {k: v for k, v in work.labels.items() if k in (names.JOB_LABEL, names.JOB_UID_LABEL, names.RUN_LABEL)}
    queue, priority = work.job.queue.value, work.job.queue_priority.value
    return (
        ours
        | ({names.KUEUE_QUEUE_LABEL: queue} if queue else {})
        | ({names.KUEUE_PRIORITY_LABEL: priority} if priority else {})
    )
