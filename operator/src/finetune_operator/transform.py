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
from finetune_plan.model import ObservedPod

from .identity import Json

_METADATA = ("name", "namespace", "uid", "generation", "resourceVersion", "deletionTimestamp")
NODE_LOST = "NodeLost"
"""status.reason of a pod whose node does not answer; it may still be Running."""
LONGEST_SENTENCE = 512
"""Characters of a kubelet's sentence that are kept for each pod."""


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
        failure=_failure(status, backend.container) if status.get("phase") == "Failed" else "",
        waiting=_waiting(status) if status.get("phase") == "Pending" else "",
        termination_deadline=metadata.get("deletionTimestamp", ""),
    )


def _container_state(status: Json, name: str) -> dict[str, Any]:
    found = (c for c in status.get("containerStatuses") or () if c["name"] == name)
    return next((c.get("state") or {} for c in found), {})


def _final_report(message: str | None) -> FinalReport | None:
    record = report.parse(message.strip()) if message else None
    return record if isinstance(record, FinalReport) else None


def _disruption(status: Json) -> str:
    """Why Kubernetes, not a container, ended the pod: a condition says so, or a reason, as only kubelets give one."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return _sentence({"reason": "Disrupted"} | condition)
    reason = status.get("reason")
    return _sentence(status) if reason and (status.get("phase") == "Failed" or reason == NODE_LOST) else ""


def _failure(status: Json, trainer: str) -> str:
    """Which container made a pod fail, if it is not the trainer's: the first of those that failed."""
    failed = [
        (ended.get("finishedAt") or "", f"{what} {each['name']} exited with code {code} ({_sentence(ended)})")
        for key, what in (("initContainerStatuses", "init container"), ("containerStatuses", "container"))
        for each in status.get(key) or ()
        if (ended := (each.get("state") or {}).get("terminated") or {}) and (code := ended.get("exitCode"))
        if each["name"] != trainer
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
    text = ": ".join(part for part in (state.get("reason"), state.get("message")) if part)
    return text.strip()[:LONGEST_SENTENCE].rstrip(".")
