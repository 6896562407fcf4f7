"""Kubernetes Events: one for every condition that changed and for every object that was skipped.

Their names make a second one impossible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from finetune_api.resource import conditions as c
from finetune_api.resource import names
from finetune_api.resource import reasons as r
from finetune_api.resource.names import API_VERSION, KIND
from finetune_plan.pod_reasons import REFUSED, WAITING

from .identity import Json

MESSAGE_LENGTH = 1024
"""Longest message of an Event."""
PROGRESS_UNKNOWN = "ProgressUnknown"
MALFORMED = "MalformedObject"
"""Reasons of events that no condition has: the job's state is known, only its progress, or an odd object, is not."""
_REDUNDANT = {
    c.PODS_READY: {r.CREATING, r.SUSPENDED, r.RESTARTING, r.STOPPING, r.WAITING},
    c.TRAINING: {r.STARTING, r.SUSPENDED, r.QUEUED, r.QUEUE_UNMANAGED},
}
"""Reasons that only follow another condition, or that say no more than how many pods are there."""
_TROUBLE = {reason.name for reason in (
    r.CREATE_REFUSED, r.NAME_TAKEN, r.BACKEND_MISSING, r.BACKEND_SILENT, r.QUEUE_UNMANAGED, r.POD_OVERDUE,
    *(reason for _, reason in (*REFUSED, *WAITING)),
)}  # fmt: skip
"""Reasons that somebody has to do something about."""
_BAD = {(c.FAILED, "True"), (c.FAILURE_TARGET, "True"), (c.ACCEPTED, "False"), (c.READY, "False")}


def of_change(job: Json, before: Json, after: Json, now: str) -> list[Json]:
    """Events for the conditions whose status or reason differs between two statuses."""
    return [_of_condition(job, condition, now) for condition in _changed(before, after)]


def progress_unknown(job: Json, pod: str, uid: str, node: str, error: str, now: str) -> Json:
    """The event that says why a job's progress stands still; one for each pod."""
    message = (
        f"The log of pod {pod} cannot be read, so progress is unknown: {error.removesuffix('.')}. The job continues. "
        f"Check the kubelet of node {node}: `kubectl describe node {node}`."
    )
    return _event(job, PROGRESS_UNKNOWN, message, (uid, PROGRESS_UNKNOWN), now, bad=True)


def of_skipped(job: Json, what: str, why: str, now: str) -> Json:
    """The event about an object that names the job as its owner and is not counted."""
    message = f"{what} is ignored: {why}. Correct or delete it."
    return _event(job, MALFORMED, message, (what, why), now, bad=True)


def _changed(before: Json, after: Json) -> Iterator[Json]:
    old = {x["type"]: (x["status"], x["reason"]) for x in before.get("conditions") or ()}
    for condition in after.get("conditions") or ():
        changed = old.get(condition["type"]) != (condition["status"], condition["reason"])
        if changed and _deserves_event(condition, doomed=_is_doomed(after), ended="completionTime" in after):
            yield condition


def _is_doomed(status: Json) -> bool:
    return "completionTime" in status or any(x["type"] == c.FAILURE_TARGET for x in status.get("conditions") or ())


def _deserves_event(condition: Json, *, doomed: bool, ended: bool) -> bool:
    kind = condition["type"]
    if kind == c.FAILURE_TARGET:  # once the job is over, Failed says the same
        return not ended
    if kind == c.READY:  # all its other reasons repeat what Accepted, Complete or Failed says
        return bool(condition["reason"] == r.INTERNAL_ERROR.name)
    redundant = {reason.name for reason in _REDUNDANT.get(kind, ())}
    return not (condition["reason"] in redundant or (doomed and kind in _REDUNDANT))


def _of_condition(job: Json, condition: Json, now: str) -> Json:
    identity = [condition[k] for k in ("type", "status", "reason", "lastTransitionTime")]
    message = f"{condition['type']}={condition['status']}: {condition['message']}"
    bad = (condition["type"], condition["status"]) in _BAD or condition["reason"] in _TROUBLE
    return _event(job, condition["reason"], message, identity, now, bad=bad)


def _event(job: Json, reason: str, message: str, identity: Iterable[str], now: str, *, bad: bool) -> Json:
    """An event about a job. Two with the same identity are one."""
    metadata = job["metadata"]
    digest = hashlib.sha256("/".join([metadata["uid"], *identity]).encode()).hexdigest()
    about = {k: metadata[k] for k in ("name", "namespace", "uid")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{digest[:16]}", "namespace": metadata["namespace"]},
        "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, **about},
        "type": "Warning" if bad else "Normal",
        "reason": reason,
        "message": message[:MESSAGE_LENGTH],
        "source": {"component": names.FIELD_MANAGER},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
