"""From a Kubernetes object to the few fields that a decision needs, and whose it is. Pure; called by cache.py.

Anybody may have written the object. Where it is not as it should be, these functions raise: Malformed, which says
why, or whatever Python raises; cache.py takes both alike. No message repeats a value of the object, which may be a
secret. What is kept is small, however large the object is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from finetune_api.resource import names
from finetune_api.resource.conditions import COMPLETE, FAILED
from finetune_api.resource.names import API_VERSION, GROUP, KIND
from finetune_api.runtime import report
from finetune_api.runtime.report import FinalReport
from finetune_plan.backends.protocol import Backend
from finetune_plan.model import ObservedPod, ObservedQueue, ObservedRun
from finetune_plan.network_evidence import NodeClass

from .identity import Json, Key, controller_of, key_of

T = TypeVar("T")

_METADATA = ("name", "namespace", "uid", "generation", "resourceVersion", "deletionTimestamp")
NODE_LOST = "NodeLost"
"""status.reason of a pod whose node does not answer; it may still be Running."""
WORD_LENGTH = 128
"""Longest phase, reason or time that is kept."""
SENTENCE_LENGTH = 512
"""Longest reason with its message that is kept."""
REPORT_LENGTH = 12 * 1024
"""Longest message of a pod that has ended: the kubelet's own limit for all its containers."""
YEARS = range(1970, 9000)
"""Of a time that counts: any duration that a job may have can be added to it."""
LONG_AGO = "1970-01-01T00:00:00Z"
LEVELS = 16
"""Of a spec that are kept: a few more than the deepest key has. What reads it recurses."""
_FREE = ("tags", "metadata")
"""Keys of the spec that hold anything; only that they are there counts."""


class Malformed(ValueError):
    """An object is not as it should be; the text says why and repeats no value of it."""


@dataclass(frozen=True, slots=True)
class Owned(Generic[T]):
    """What is kept of an object, and what controls it: of a job, itself."""

    owner: Key
    uid: str
    """Of the owner."""
    value: T


@dataclass(frozen=True, slots=True)
class CachedJob:
    """A FinetuneJob as it is kept: text takes a tenth of the memory that its parts would take."""

    text: bytes
    phase: str
    ended: bool


def owned_job(raw: Json) -> Owned[CachedJob]:
    return Owned(key_of(raw), _word(raw["metadata"]["uid"]), job(raw))


def owned_run(raw: Json, backend: Backend) -> Owned[ObservedRun] | None:
    """A run of any FinetuneJob; None: nothing says that it is one, whatever its labels are."""
    owner = controller_of(raw)
    if owner is None or (owner.group, owner.kind) != (GROUP, KIND):
        return None
    run = backend.observe(raw)
    if run.number < 1 or run.name != names.run_name(owner.key.name, run.number):
        raise Malformed(f"a {KIND} controls it, but its name and its label {names.RUN_LABEL} are not those of a run")
    return Owned(owner.key, owner.uid, run)


def owned_pod(raw: Json, backend: Backend) -> Owned[ObservedPod] | None:
    """A pod of any run; None: nothing says that it is one."""
    owner = controller_of(raw)
    if owner is None or (owner.group, owner.kind) != (backend.group, backend.kind):
        return None
    found = pod(raw, backend)
    if not backend.names_pod(owner.key.name, found.node_rank, found.name):
        raise Malformed(f"a {backend.kind} controls it, but its name is not the one of its rank")
    return Owned(owner.key, owner.uid, found)


def job(raw: Json) -> CachedJob:
    """A FinetuneJob without managedFields, labels and annotations, and without what is in its tags and metadata."""
    status = _status(raw.get("status") or {})
    kept = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {k: v for k, v in raw["metadata"].items() if k in _METADATA},
        "spec": _shallow(_bounded(raw.get("spec") or {})),
        "status": status,
    }
    text = json.dumps(kept, separators=(",", ":")).encode()
    return CachedJob(text, _word(status.get("phase", "None")), "completionTime" in status)


def _status(status: Json) -> Json:
    """Without times that are none; those of conditions, which must have one, are long ago. A job that has ended has
    ended at some time."""
    parts = {k: _timed(status[k], key) for k, key in (("active", "since"), ("retry", "nextTime")) if k in status}
    changes = [
        {**c, "lastTransitionTime": _time(c["lastTransitionTime"]) or LONG_AGO}
        for c in status.get("conditions") or ()
    ]
    conditions = {"conditions": changes} if changes else {}
    times = _timed(status, "startTime", "completionTime")
    if "completionTime" in status:
        times.setdefault("completionTime", _ended_at(changes))
    return times | parts | conditions


def _ended_at(conditions: list[Json]) -> str:
    """When the condition that ends a job was set."""
    times = (c["lastTransitionTime"] for c in conditions if c["type"] in (COMPLETE, FAILED) and c["status"] == "True")
    return next(times, LONG_AGO)


def _timed(value: Json, *keys: str) -> Json:
    """With the times under these keys; without those that are none."""
    return {k: v for k, v in value.items() if k not in keys} | {k: v for k in keys if (v := _time(value.get(k)))}


def _bounded(spec: Json) -> Json:
    """The spec with the entries of its free maps numbered: a plan names these keys, and validation counts them."""
    return spec | {k: {str(i): 0 for i in range(len(spec[k]))} for k in _FREE if isinstance(spec.get(k), dict)}


def _shallow(value: Any, levels: int = LEVELS) -> Any:
    """Without what is nested deeper than any key: such a key is refused, whatever is in it."""
    if isinstance(value, (dict, list)) and not levels:
        return type(value)()
    if isinstance(value, dict):
        return {name: _shallow(inner, levels - 1) for name, inner in value.items()}
    return [_shallow(inner, levels - 1) for inner in value] if isinstance(value, list) else value


def pod(raw: Json, backend: Backend) -> ObservedPod:
    """A training pod."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    ended = _container_state(status, backend.container).get("terminated") or {}
    phase = _word(status.get("phase", "Unknown"))
    return ObservedPod(
        name=_word(metadata["name"], names.OBJECT_NAME_LENGTH),
        uid=_word(metadata["uid"]),
        run=names.label_number(metadata, names.RUN_LABEL),
        node_rank=backend.node_rank(raw),
        phase=phase,
        exit_code=_exit_code(ended),
        report=_final_report(ended.get("message")),
        disruption=_disruption(status),
        failure=_failure(status, backend.container) if phase == "Failed" else "",
        waiting=_waiting(status) if phase == "Pending" else "",
        termination_deadline=_word(metadata.get("deletionTimestamp", "")),
        node=_word((raw.get("spec") or {}).get("nodeName") or "", names.OBJECT_NAME_LENGTH),
        bound_since=_bound_since(raw),
        ended_at=_time(ended.get("finishedAt")),
        unschedulable_since=_unschedulable_since(status),
        abandoned=_is_abandoned(raw),
    )


def node(raw: Json) -> NodeClass:
    """What may say which network a node is on."""
    labels, allocatable = raw["metadata"].get("labels") or {}, raw.get("status", {}).get("allocatable") or {}
    return NodeClass(labels, frozenset(name for name, amount in allocatable.items() if str(amount) != "0"))


def takes_pods(raw: Json) -> bool:
    """Whether a node is ready and schedulable. One that is not may not show yet, or any more, what it has."""
    ready = any(
        each.get("type") == "Ready" and each.get("status") == "True"
        for each in raw.get("status", {}).get("conditions") or ()
    )
    return ready and not raw.get("spec", {}).get("unschedulable")


def queue(workload: Json | None, *, managed: bool) -> ObservedQueue:
    """Why Kueue's Workload is not admitted: no quota (yet), or quota without the checks that admission waits for."""
    conditions = {c["type"]: c for c in ((workload or {}).get("status") or {}).get("conditions") or ()}
    unmet = (conditions.get(kind) or {} for kind in ("QuotaReserved", "Admitted"))
    message = next((c.get("message") or "" for c in unmet if c.get("status") == "False"), "")
    return ObservedQueue(_word(message, SENTENCE_LENGTH), managed or workload is not None)


def _word(value: object, length: int = WORD_LENGTH) -> str:
    if not isinstance(value, str):
        raise Malformed("a field that must be text is not")
    return value[:length]


def _time(value: object) -> str:
    """A time in UTC (RFC 3339); empty if there is none, or none that can be counted with."""
    try:
        found = datetime.fromisoformat(_word(value or ""))
    except ValueError:
        return ""
    counts = found.tzinfo and found.year in YEARS
    return f"{found.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if counts else ""


def _exit_code(ended: Json) -> int | None:
    code = ended.get("exitCode")
    if code is not None and type(code) is not int:
        raise Malformed("an exit code is not a number")
    return code


def _bound_since(raw: Json) -> str:
    """When the scheduler bound it, else when its node took it, else when it was created."""
    status = raw.get("status") or {}
    if not (raw.get("spec") or {}).get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return ""
    scheduled = (c for c in status.get("conditions") or () if (c["type"], c["status"]) == ("PodScheduled", "True"))
    times = (*(c.get("lastTransitionTime") for c in scheduled), status.get("startTime"))
    return next(filter(None, map(_time, times)), _time(raw["metadata"]["creationTimestamp"]))


def _unschedulable_since(status: Json) -> str:
    found = (c for c in status.get("conditions") or () if (c["type"], c["status"]) == ("PodScheduled", "False"))
    times = (_time(c.get("lastTransitionTime")) for c in found if c.get("reason") == "Unschedulable")
    return next(times, "")


def _is_abandoned(raw: Json) -> bool:
    """Whether its node does not report it. A kubelet writes both conditions; a node controller that marks the pods of
    a node that does not answer sets Ready alone."""
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    if raw["metadata"].get("deletionGracePeriodSeconds") == 0 or spec.get("readinessGates"):
        return False
    found = {c["type"]: c["status"] for c in status.get("conditions") or ()}
    marked = (found.get("ContainersReady"), found.get("Ready")) == ("True", "False")
    return marked or status.get("phase") == "Pending"


def _container_state(status: Json, name: str) -> dict[str, Any]:
    found = (c for c in status.get("containerStatuses") or () if c["name"] == name)
    return next((c.get("state") or {} for c in found), {})


def _final_report(message: str | None) -> FinalReport | None:
    if not message or len(message) > REPORT_LENGTH:
        return None
    record = report.parse(message.strip())
    return record if isinstance(record, FinalReport) else None


def _disruption(status: Json) -> str:
    """Why Kubernetes, not a container, ended the pod: a condition says so, or a reason, as only kubelets give one."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return _sentence({"reason": "Disrupted"} | condition)
    reason = _word(status.get("reason") or "")
    return _sentence(status) if reason and (status.get("phase") == "Failed" or reason == NODE_LOST) else ""


def _failure(status: Json, trainer: str) -> str:
    """Which container made a pod fail, if it is not the trainer's: the first of those that failed."""
    failed = [
        (_word(ended.get("finishedAt") or ""), f"{what} {_word(name)} exited with code {code} ({_sentence(ended)})")
        for key, what in (("initContainerStatuses", "init container"), ("containerStatuses", "container"))
        for each in status.get(key) or ()
        if (ended := (each.get("state") or {}).get("terminated") or {}) and (code := _exit_code(ended))
        if (name := each["name"]) != trainer
    ]
    return min(failed, default=("", ""))[1]


def _waiting(status: Json) -> str:
    """The scheduler's or the kubelet's message: init containers first, because they run first."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return _sentence(condition)
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return _sentence(waiting)
    return ""


def _sentence(state: Json) -> str:
    """A reason and its message, as Kubernetes reports them."""
    parts = (_word(state.get(key) or "", SENTENCE_LENGTH) for key in ("reason", "message"))
    return ": ".join(filter(None, parts)).strip()[:SENTENCE_LENGTH].rstrip(".")
