"""Why pods are missing, or do not run, as the API server, the scheduler and the kubelet report it. Pure.

Reasons are those that the operator writes into the job's conditions (finetune_plan/pod_reasons.py). Here every
problem of every pod is listed, and each part of the scheduler's message has a remedy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.pod_reasons import REFUSED, WAITING, match_reason

from .api_client import Json
from .snapshot import Snapshot

GPUS = "Insufficient nvidia.com/gpu"
SCHEDULING = (
    (GPUS, "No node has enough free GPUs for a pod: wait, or raise compute.nodes to use fewer GPUs per pod."),
    ("Insufficient cpu", "Lower pods.cpu, or wait for other jobs."),
    ("Insufficient memory", "Lower pods.memory (and pods.sharedMemory), or wait for other jobs."),
    ("untolerated taint", "Add the taint to pods.tolerations, if the job may run on those nodes."),
    (
        "node affinity/selector",
        "Check compute.gpu_type, pods.nodeSelector and the labels of the GPU nodes (docs/first-gpu-job.md).",
    ),
    ("volume node affinity conflict", "The volume is in another zone: use storage that all nodes can reach."),
    ("no nodes available", "The cluster has no ready nodes."),
)
"""Part of the scheduler's message, remedy. All that match are reported."""
STARTING = ("PodInitializing", "ContainerCreating")
MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedBinding", "FailedCreatePodSandBox")
POD_REASONS = {found.name for _, found in (*REFUSED, *WAITING)}
"""Reasons of PodsReady that summarise pods and their events, which are reported here in full."""

PendingReason = tuple[str, str, str]
"""Reason, message, remedy."""


def missing(snapshot: Snapshot) -> Iterator[Problem]:
    """Pods that could not be created: the events of the run name the cause."""
    if snapshot.run is None:
        return
    required, uid = find(snapshot.job, "status.layout.nodes") or 1, snapshot.run["metadata"]["uid"]
    own = [p for p in snapshot.pods if any(o["uid"] == uid for o in p["metadata"].get("ownerReferences") or ())]
    if len(own) >= required:
        return
    events = [e for e in snapshot.events if e["involvedObject"].get("uid") == uid]
    for text in dict.fromkeys(e["message"] for e in events if e.get("reason") == BACKEND.refusal_reason):
        known = match_reason(REFUSED, text)
        yield Problem(run_path(snapshot.run), known.name, f"A pod cannot be created: {text}", known.remedy)


def run_path(run: Json) -> str:
    """The object of a run, as findings name it."""
    return f"{BACKEND.kind.lower()} {run['metadata']['name']}"


def waiting(snapshot: Snapshot) -> Iterator[Problem]:
    """Pods that exist and do not run. Pods with the same reason are reported together."""
    pods: dict[PendingReason, list[str]] = {}
    for pod in snapshot.pods:
        if find(pod, "status.phase") == "Pending":
            for found in pending_reasons(pod, snapshot.events):
                pods.setdefault(found, []).append(pod["metadata"]["name"])
    for (reason, message, remedy), names in pods.items():
        path = f"pod {names[0]}" if len(names) == 1 else f"pods {', '.join(sorted(names))}"
        yield Problem(path, reason, message, remedy)


def pending_reasons(pod: Json, events: Iterable[Json]) -> Iterator[PendingReason]:
    """Why a pending pod does not run."""
    status = pod.get("status") or {}
    scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        yield _unscheduled(scheduled)
        return
    if scheduled is None and not find(pod, "spec.nodeName"):
        message = "The scheduler has not processed the pod yet."
        yield "NotScheduled", message, "Check that the scheduler of the cluster is running."
        return
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(each.get("state") or {}).get("waiting") or {} for each in containers]
    stuck = [state for state in states if state.get("reason") not in (None, *STARTING)]
    yield from map(_container_waiting, stuck)
    if not stuck:
        yield from _mount_failures(pod, events)


def _unscheduled(condition: Json) -> PendingReason:
    text = condition.get("message") or ""
    known = match_reason(WAITING, f"{text} {condition.get('reason')}")
    remedies = " ".join(remedy for part, remedy in SCHEDULING if part in text)
    return known.name, f"The pod cannot be scheduled: {text}", remedies or known.remedy


def _container_waiting(state: Json) -> PendingReason:
    text = f"{state['reason']}: {state.get('message') or 'the kubelet gives no details'}"
    known = match_reason(WAITING, text)
    reason = state["reason"] if known.name == "Waiting" else known.name
    return reason, text, known.remedy or "Resolve what the message names."


def _mount_failures(pod: Json, events: Iterable[Json]) -> Iterator[PendingReason]:
    uid = pod["metadata"]["uid"]
    own = [e for e in events if e["involvedObject"].get("uid") == uid and e["reason"] in MOUNTS]
    if own:
        remedy = "Create or repair the volume that the message names; the node then tries again."
        yield own[-1]["reason"], own[-1]["message"], remedy
