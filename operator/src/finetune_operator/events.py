"""Kubernetes Events: one for every condition that changed, under a name that makes a second one impossible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from finetune_api.resource import conditions as c
from finetune_api.resource import names
from finetune_api.resource import reasons as r
from finetune_api.resource.names import API_VERSION, KIND
from finetune_plan.pod_reasons import WAITING

from .identity import Json

MESSAGE_LENGTH = 1024
"""Longest message of an Event."""
_REDUNDANT = {
    c.PODS_READY: {r.CREATING, r.SUSPENDED, r.RESTARTING, *(reason for _, reason in WAITING)},
    c.TRAINING: {r.STARTING, r.SUSPENDED, r.QUEUED, r.QUEUE_UNMANAGED},
}
"""Reasons that only follow another condition, or that the pods' own events report better."""


def of_change(job: Json, before: Json, after: Json, now: str) -> list[Json]:
    """Events for the conditions whose status or reason differs between two statuses."""
    return [_event(job, condition, now) for condition in _changed(before, after)]


def _changed(before: Json, after: Json) -> Iterator[Json]:
    old = {x["type"]: (x["status"], x["reason"]) for x in before.get("conditions") or ()}
    for condition in after.get("conditions") or ():
        changed = old.get(condition["type"]) != (condition["status"], condition["reason"])
        if changed and _deserves_event(condition, ended="completionTime" in after):
            yield condition


def _deserves_event(condition: Json, *, ended: bool) -> bool:
    kind = condition["type"]
    if kind == c.READY:  # all its other reasons repeat what Accepted, Complete or Failed says
        return bool(condition["reason"] == r.INTERNAL_ERROR.name)
    redundant = {reason.name for reason in _REDUNDANT.get(kind, ())}
    return not (condition["reason"] in redundant or (ended and kind in _REDUNDANT))


def _event(job: Json, condition: Json, now: str) -> Json:
    metadata = job["metadata"]
    identity = "/".join(
        [metadata["uid"], *(condition[k] for k in ("type", "status", "reason", "lastTransitionTime"))]
    )
    name = f"{metadata['name']}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    bad = (condition["type"], condition["status"]) in ((c.FAILED, "True"), (c.ACCEPTED, "False"), (c.READY, "False"))
    about = {k: metadata[k] for k in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, **about},
        "type": "Warning" if bad else "Normal",
        "reason": condition["reason"],
        "message": f"{condition['type']}={condition['status']}: {condition['message']}"[:MESSAGE_LENGTH],
        "source": {"component": names.FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
