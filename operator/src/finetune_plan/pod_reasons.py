"""Why pods are not there or do not start: from the words of Kubernetes to a reason and a remedy.

Kubernetes says it in sentences only, so these are searched for the parts that have not changed for years.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hindrance:
    """What keeps a pod from running."""

    reason: str
    remedy: str


_AGAIN = "The Training Operator tries again, less and less often; suspend and resume the job to have it now."
_QUOTA = "Wait for other pods to end, ask for less, or have the ResourceQuota raised."
_NAMELESS = "Set pods.cpu and pods.memory, or give the namespace a LimitRange with defaults."
_LEVEL = "Take away the pods.* and network keys that the level forbids, or use a namespace that allows them."
_RANGE = "Choose pods.cpu, pods.memory and pods.sharedMemory within the namespace's LimitRange."

REFUSED: tuple[tuple[str, Hindrance], ...] = (
    ("exceeded quota", Hindrance("QuotaExceeded", f"{_QUOTA} {_AGAIN}")),
    ("failed quota", Hindrance("QuotaNeedsLimits", f"{_NAMELESS} {_AGAIN}")),
    ("violates PodSecurity", Hindrance("PodSecurity", f"{_LEVEL} {_AGAIN}")),
    (" usage per ", Hindrance("LimitRange", f"{_RANGE} {_AGAIN}")),
    ("no PriorityClass", Hindrance("NoPriorityClass", f"Create it, or change pods.priorityClassName. {_AGAIN}")),
    ("serviceaccount", Hindrance("NoServiceAccount", f"Create it, or change pods.serviceAccountName. {_AGAIN}")),
    ("", Hindrance("PodsRefused", f"Ask whoever runs this cluster's admission rules. {_AGAIN}")),
)
"""Words of the API server that refused a pod; the first match counts, and the last one always matches."""

WAITING: tuple[tuple[str, Hindrance], ...] = (
    ("persistentvolumeclaim ", Hindrance(
        "ClaimMissing",
        "Create the PersistentVolumeClaim; the pod starts by itself.")),
    ("unbound immediate PersistentVolumeClaims", Hindrance(
        "ClaimUnbound",
        "Wait for the volume, or look at the claim's events: its StorageClass may be missing or out of space.")),
    ("Unschedulable", Hindrance(
        "Unschedulable",
        "Free or add nodes that fit, ask for less, or tolerate the taints that are named (pods.tolerations).")),
    ("ImagePull", Hindrance(
        "ImagePull",
        "Check pods.image, and pods.imagePullSecrets if the registry wants a login.")),
    ("InvalidImageName", Hindrance("ImagePull", "Correct pods.image.")),
    ("CreateContainerConfigError", Hindrance("ContainerConfig", "Create the Secret or ConfigMap that is named.")),
    ("", Hindrance("Waiting", "")),
)  # fmt: skip
"""Words of the scheduler or the kubelet about a pod that does not run yet; likewise."""


def hindrance(table: tuple[tuple[str, Hindrance], ...], words: str) -> Hindrance:
    """The first row whose part stands in the words."""
    return next(found for part, found in table if part in words)
