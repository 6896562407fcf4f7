"""From a Kubernetes object to the few fields that a decision needs. Pure; called by cache.py."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from finetune_api.resource import names
from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.runtime import report
from finetune_api.runtime.report import FinalReport
from finetune_plan.backends.protocol import Backend
from finetune_plan.model import ObservedPod, ObservedQueue

from .identity import Json

_METADATA = ("name", "namespace", "uid", "generation", "resourceVersion", "deletionTimestamp")
DISRUPTIONS = frozenset(
    {"Evicted", "NodeLost", "NodeAffinity", "Preempting", "Shutdown", "Terminated", "UnexpectedAdmissionError"}
)
"""status.reason of pods that a kubelet, not the trainer, ended."""


@dataclass(frozen=True, slots=True)
class CachedJob:
    """A FinetuneJob as it is kept: text takes a tenth of the memory that its parts would take."""

    text: bytes
    phase: str
    ended: bool


def job(raw: Json) -> CachedJob:
    """A FinetuneJob without managedFields, labels and annotations."""
    status = raw.get("status") or {}
    kept = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {k: v for k, v in raw["metadata"].items() if k in _METADATA},
        "spec": raw.get("spec") or {},
        "status": status,
    }
    text = json.dumps(kept, separators=(",", ":")).encode()
    return CachedJob(text, status.get("phase", "None"), "completionTime" in status)


def pod(raw: Json, backend: Backend) -> ObservedPod:
    """A training pod."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    ended = _container_state(status, backend.container).get("terminated") or {}
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        run=names.label_number(metadata, names.RUN_LABEL),
        node_rank=backend.node_rank(raw),
        phase=status.get("phase", "Unknown"),
        exit_code=ended.get("exitCode"),
        report=_final_report(ended.get("message")),
        disruption=_disruption(status),
        waiting=_waiting(status) if status.get("phase") == "Pending" else "",
        termination_deadline=metadata.get("deletionTimestamp", ""),
    )


def queue(workload: Json | None, *, managed: bool) -> ObservedQueue:
    """Why Kueue's Workload is not admitted: no quota (yet), or quota without the checks that admission waits for."""
    conditions = {c["type"]: c for c in ((workload or {}).get("status") or {}).get("conditions") or ()}
    unmet = (conditions.get(kind) or {} for kind in ("QuotaReserved", "Admitted"))
    message = next((c.get("message") or "" for c in unmet if c.get("status") == "False"), "")
    return ObservedQueue(message, managed or workload is not None)


def _container_state(status: Json, name: str) -> dict[str, Any]:
    found = (c for c in status.get("containerStatuses") or () if c["name"] == name)
    return next((c.get("state") or {} for c in found), {})


def _final_report(message: str | None) -> FinalReport | None:
    record = report.parse(message.strip()) if message else None
    return record if isinstance(record, FinalReport) else None


def _disruption(status: Json) -> str:
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return str(condition.get("reason") or "Disrupted")
    reason = status.get("reason", "")
    return reason if reason in DISRUPTIONS else ""


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


def _sentence(waiting: Json) -> str:
    return ": ".join(part for part in (waiting.get("reason"), waiting.get("message")) if part)
