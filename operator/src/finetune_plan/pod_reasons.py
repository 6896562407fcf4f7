"""Why pods are not there or do not start: from the words of Kubernetes to a reason and a remedy.

Kubernetes says it in sentences only, so these are searched for the parts that have not changed for years.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PodReason:
    """What keeps a pod from running."""

    reason: str
    remedy: str


_QUOTA = "Wait for other pods to end, ask for less, or have the ResourceQuota raised."
_NAMELESS = "Set pods.cpu and pods.memory, or give the namespace a LimitRange with defaults."
_LEVEL = "Take away the pods.* and network keys that the level forbids, or use a namespace that allows them."
_RANGE = "Choose pods.cpu, pods.memory and pods.sharedMemory within the namespace's LimitRange."

REFUSED: tuple[tuple[str, PodReason], ...] = (
    ("exceeded quota", PodReason("QuotaExceeded", _QUOTA)),
    ("failed quota", PodReason("QuotaNeedsLimits", _NAMELESS)),
    ("violates PodSecurity", PodReason("PodSecurity", _LEVEL)),
    (" usage per ", PodReason("LimitRange", _RANGE)),
    ("no PriorityClass", PodReason("NoPriorityClass", "Create it, or change pods.priorityClassName.")),
    ("serviceaccount", PodReason("NoServiceAccount", "Create it, or change pods.serviceAccountName.")),
    ("", PodReason("PodsRefused", "Ask whoever runs this cluster's admission rules.")),
)
"""Words of the API server that refused a pod; the first match counts, and the last one always matches."""

WAITING: tuple[tuple[str, PodReason], ...] = (
    ("persistentvolumeclaim ", PodReason(
        "ClaimMissing",
        "Create the PersistentVolumeClaim; the pod starts by itself.")),
    ("unbound immediate PersistentVolumeClaims", PodReason(
        "ClaimUnbound",
        "Wait for the volume, or look at the claim's events: its StorageClass may be missing or out of space.")),
    ("Unschedulable", PodReason(
        "Unschedulable",
        "Free or add nodes that fit, ask for less, or tolerate the taints that are named (pods.tolerations).")),
    ("ImagePull", PodReason(
        "ImagePull",
        "Check pods.image, and pods.imagePullSecrets if the registry wants a login.")),
    ("InvalidImageName", PodReason("ImagePull", "Correct pods.image.")),
    ("CreateContainerConfigError", PodReason("ContainerConfig", "Create the Secret or ConfigMap that is named.")),
    ("", PodReason("Waiting", "")),
)  # fmt: skip
"""Words of the scheduler or the kubelet about a pod that does not run yet; likewise."""


def match_reason(table: tuple[tuple[str, PodReason], ...], words: str) -> PodReason:
    """The first row whose part stands in the words."""
    return next(found for part, found in table if part in words)


def refusal_reason(words: str, controller: str) -> PodReason:
    """Why a pod of a run was refused; its controller goes on trying."""
    found = match_reason(REFUSED, words)
    again = f"The {controller} tries again, less and less often; suspend and resume the job to have it now."
    return replace(found, remedy=f"{found.remedy} {again}")
