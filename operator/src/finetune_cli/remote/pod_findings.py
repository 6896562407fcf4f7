"""Why pods are not there, or do not run: what the API server, the scheduler and the kubelet say, with remedies.

Pure. The texts that are looked for are those of Kubernetes 1.36; what is not recognised is told as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from finetune_api.logic import find
from finetune_api.problems import Problem

from .seen import Seen
from .server import Json

CREATION = (
    ("exceeded quota", "QuotaExceeded",
     "Wait until other jobs of the namespace end, ask for less (pods.memory, compute), or have the quota raised."),
    ("failed quota", "QuotaNeedsRequests",
     "The quota wants every pod to say what it takes: set pods.memory and pods.cpu."),
    ("violates PodSecurity", "PodSecurity",
     "Our pods fit the restricted level, so a container that somebody adds does not: have that one mended."),
    ("usage per Container", "LimitRange", "Change pods.memory or pods.cpu so that they fit the LimitRange."),
    ("usage per Pod", "LimitRange", "Change pods.memory or pods.cpu so that they fit the LimitRange."),
    ("no PriorityClass", "PriorityClassMissing", "Correct pods.priorityClassName: `kubectl get priorityclasses`."),
    ("serviceaccount", "ServiceAccountMissing", "Create the service account, or correct pods.serviceAccountName."),
    ("admission webhook", "Denied", "Ask whoever runs that webhook."),
)  # fmt: skip
"""Part of the message with which the creation of a pod is refused, our reason, the way out."""

SCHEDULING = (
    ("Insufficient nvidia.com/gpu", "No node has as many GPUs free as a pod takes: wait, or set more compute.nodes."),
    ("Insufficient cpu", "Lower pods.cpu, or wait for other jobs."),
    ("Insufficient memory", "Lower pods.memory (and pods.sharedMemory), or wait for other jobs."),
    ("Insufficient ", "No node has as much of that resource free: check that its device plugin runs."),
    ("untolerated taint", "Add the taint to pods.tolerations, if the job may run on those nodes."),
    ("node affinity/selector", "Check compute.gpu_type (nodes: nvidia.com/gpu.product) and pods.nodeSelector."),
    ("persistentvolumeclaim", "Create the claim that is named, or correct its name."),
    ("unbound immediate", "The claim is not bound to a volume: kubectl describe pvc."),
    ("volume node affinity conflict", "The volume lies in another zone: use storage that all nodes can reach."),
    ("no nodes available", "The cluster has no nodes that are ready."),
)  # fmt: skip
"""Part of the scheduler's message, the way out. All that apply are told."""

KUBELET = {
    "ErrImagePull": "Check pods.image, that nodes reach the registry, and pods.imagePullSecrets.",
    "ImagePullBackOff": "Check pods.image, that nodes reach the registry, and pods.imagePullSecrets.",
    "InvalidImageName": "Correct pods.image.",
    "ErrImageNeverPull": "The image is not on the node, and pods.imagePullPolicy is Never.",
    "CreateContainerConfigError": "Create the Secret or ConfigMap that is named.",
    "RunContainerError": "The node could not start the container; the message says what it lacks.",
}
"""Reason of a waiting container, the way out."""
MOUNTS = ("FailedMount", "FailedAttachVolume", "FailedBinding", "FailedCreatePodSandBox")


def missing(seen: Seen) -> Iterator[Problem]:
    """Pods that could not be created: the run's own events say why."""
    wanted = find(seen.job, "status.layout.nodes") or 1
    if seen.run is None or len(_current(seen)) >= wanted:
        return
    uid = seen.run["metadata"]["uid"]
    texts = {e["message"]: None for e in seen.events if e["involvedObject"].get("uid") == uid and _is_failure(e)}
    for text in texts:
        reason, remedy = creation(text) or ("PodRefused", "Ask whoever runs the cluster.")
        yield Problem(
            f"pytorchjob {seen.run['metadata']['name']}", reason, f"A pod cannot be created: {text}", remedy
        )


def waiting(seen: Seen) -> Iterator[Problem]:
    """Pods that are there and do not run. Those with the same trouble are told together."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for pod in seen.pods:
        if find(pod, "status.phase") == "Pending":
            for trouble in troubles(pod, seen.events):
                told.setdefault(trouble, []).append(pod["metadata"]["name"])
    for (reason, message, remedy), names in told.items():
        yield Problem(_pods(names), reason, message, remedy)


def creation(text: str) -> tuple[str, str] | None:
    """Reason and remedy of a refusal to create a pod, if it is one that we know."""
    return next(((reason, remedy) for part, reason, remedy in CREATION if part in text), None)


def troubles(pod: Json, events: Iterable[Json]) -> Iterator[tuple[str, str, str]]:
    """Why a pending pod does not run: reason, message and remedy of each."""
    status = pod.get("status") or {}
    scheduled = next((c for c in status.get("conditions") or () if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        text = scheduled.get("message") or scheduled.get("reason") or ""
        yield scheduled.get("reason") or "Unschedulable", f"No node takes the pod: {text}", _scheduling(text)
        return
    if scheduled is None and not find(pod, "spec.nodeName"):
        yield "NotScheduled", "No scheduler has looked at the pod.", "Check that the cluster's scheduler runs."
        return
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    states = [(each.get("state") or {}).get("waiting") or {} for each in containers]
    stuck = [s for s in states if s.get("reason") in KUBELET]
    for state in stuck:
        text = f"{state['reason']}: {state.get('message') or 'the kubelet does not say why'}"
        yield state["reason"], text, KUBELET[state["reason"]]
    if not stuck:
        yield from _mounts(pod, events)


def _mounts(pod: Json, events: Iterable[Json]) -> Iterator[tuple[str, str, str]]:
    own = [e for e in events if e["involvedObject"].get("uid") == pod["metadata"]["uid"] and e["reason"] in MOUNTS]
    if own:
        yield own[-1]["reason"], own[-1]["message"], "Create or mend the volume that is named; the node tries again."


def _scheduling(text: str) -> str:
    remedies = [remedy for part, remedy in SCHEDULING if part in text]
    if any(part in text for part, _ in SCHEDULING[:3]):  # the general word says the same once more
        remedies = [r for r in remedies if r != SCHEDULING[3][1]]
    return " ".join(remedies) or "Wait for other jobs, or add nodes."


def _current(seen: Seen) -> list[Json]:
    """Pods of the current run."""
    assert seen.run is not None
    return [
        p for p in seen.pods
        if any(o["uid"] == seen.run["metadata"]["uid"] for o in p["metadata"].get("ownerReferences") or ())
    ]  # fmt: skip


def _is_failure(event: Json) -> bool:
    return event.get("type") == "Warning" and "Create" in event.get("reason", "")


def _pods(names: list[str]) -> str:
    return f"pod {names[0]}" if len(names) == 1 else f"pods {', '.join(sorted(names))}"
