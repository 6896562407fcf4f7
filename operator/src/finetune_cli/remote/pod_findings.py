"""Why pods are not there, or do not run: what the API server, the scheduler and the kubelet say, with remedies. Pure.

Reasons are those that the operator writes into the job's conditions (finetune_plan/pod_reasons.py). Here every
problem of every pod is listed, and each part of the scheduler's sentence has a remedy of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.pod_reasons import REFUSED, WAITING, match_reason

from .seen import Seen
from .server import Json

GPUS = "Insufficient nvidia.com/gpu"
SCHEDULING = (
    (GPUS, "No node has as many GPUs free as a pod takes: wait, or set more compute.nodes."),
    ("Insufficient cpu", "Lower pods.cpu, or wait for other jobs."),
    ("Insufficient memory", "Lower pods.memory (and pods.sharedMemory), or wait for other jobs."),
    ("untolerated taint", "Add the taint to pods.tolerations, if the job may run on those nodes."),
    ("node affinity/selector", "Check compute.gpu_type (nodes: nvidia.com/gpu.product) and pods.nodeSelector."),
    ("volume node affinity conflict", "The volume lies in another zone: use storage that all nodes can reach."),
    ("no nodes available", "The cluster has no nodes that are ready."),
)
"""Part of the scheduler's message, the way out. All that apply are told."""
STARTING = ("PodInitializing", "ContainerCreating")
MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedBinding", "FailedCreatePodSandBox")
SPOKEN_FOR = {found.name for _, found in (*REFUSED, *WAITING)}
"""Reasons of PodsReady that repeat what pods and their events say, which is told here in full."""

Trouble = tuple[str, str, str]
"""Reason, message, remedy."""


def missing(seen: Seen) -> Iterator[Problem]:
    """Pods that could not be created: the run's own events say why."""
    wanted = find(seen.job, "status.layout.nodes") or 1
    if seen.run is None or len(_current(seen)) >= wanted:
        return
    uid = seen.run["metadata"]["uid"]
    for text in dict.fromkeys(e["message"] for e in seen.events if _tells_failure(e, uid)):
        known = match_reason(REFUSED, text)
        yield Problem(run_path(seen.run), known.name, f"A pod cannot be created: {text}", known.remedy)


def run_path(run: Json) -> str:
    """The object of a run, as findings name it."""
    return f"{BACKEND.kind.lower()} {run['metadata']['name']}"


def waiting(seen: Seen) -> Iterator[Problem]:
    """Pods that are there and do not run. Those with the same trouble are told together."""
    told: dict[Trouble, list[str]] = {}
    for pod in seen.pods:
        if find(pod, "status.phase") == "Pending":
            for trouble in troubles(pod, seen.events):
                told.setdefault(trouble, []).append(pod["metadata"]["name"])
    for (reason, message, remedy), names in told.items():
        yield Problem(_pods(names), reason, message, remedy)


def troubles(pod: Json, events: Iterable[Json]) -> Iterator[Trouble]:
    """Why a pending pod does not run."""
    status = pod.get("status") or {}
    scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        yield _unscheduled(scheduled)
        return
    if scheduled is None and not find(pod, "spec.nodeName"):
        yield "NotScheduled", "No scheduler has looked at the pod.", "Check that the cluster's scheduler runs."
        return
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(each.get("state") or {}).get("waiting") or {} for each in containers]
    stuck = [state for state in states if state.get("reason") not in (None, *STARTING)]
    yield from map(_waits, stuck)
    if not stuck:
        yield from _mounts(pod, events)


def _unscheduled(condition: Json) -> Trouble:
    text = condition.get("message") or ""
    known = match_reason(WAITING, f"{text} {condition.get('reason')}")
    remedies = " ".join(remedy for part, remedy in SCHEDULING if part in text)
    return known.name, f"No node takes the pod: {text}", remedies or known.remedy


def _waits(state: Json) -> Trouble:
    text = f"{state['reason']}: {state.get('message') or 'the kubelet does not say why'}"
    known = match_reason(WAITING, text)
    reason = state["reason"] if known.name == "Waiting" else known.name
    return reason, text, known.remedy or "The message says what the node lacks."


def _mounts(pod: Json, events: Iterable[Json]) -> Iterator[Trouble]:
    own = [e for e in events if e["involvedObject"].get("uid") == pod["metadata"]["uid"] and e["reason"] in MOUNTS]
    if own:
        yield own[-1]["reason"], own[-1]["message"], "Create or mend the volume that is named; the node tries again."


def _current(seen: Seen) -> list[Json]:
    """Pods of the current run."""
    assert seen.run is not None
    uid = seen.run["metadata"]["uid"]
    return [p for p in seen.pods if any(o["uid"] == uid for o in p["metadata"].get("ownerReferences") or ())]


def _tells_failure(event: Json, uid: str) -> bool:
    about = event["involvedObject"].get("uid") == uid
    return about and event.get("reason") == BACKEND.refusal_reason


def _pods(names: list[str]) -> str:
    return f"pod {names[0]}" if len(names) == 1 else f"pods {', '.join(sorted(names))}"
