"""Why pods do not exist or do not start: from Kubernetes' own sentences to one of our reasons.

Kubernetes gives the cause only in sentences, so these are searched for the parts that have not changed for years.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.resource import reasons as r
from finetune_api.resource.reasons import Reason

REFUSED: tuple[tuple[str, Reason], ...] = (
    ("exceeded quota", r.QUOTA_EXCEEDED),
    ("failed quota", r.QUOTA_NEEDS_LIMITS),
    ("violates PodSecurity", r.POD_SECURITY),
    (" usage per ", r.LIMIT_RANGE),
    ("no PriorityClass", r.NO_PRIORITY_CLASS),
    ("serviceaccount", r.NO_SERVICE_ACCOUNT),
    ("already exists", r.POD_NAME_TAKEN),
    ("", r.PODS_REFUSED),
)
"""Messages of the API server when it refuses a pod. The first match counts; the last one always matches."""

WAITING: tuple[tuple[str, Reason], ...] = (
    ("persistentvolumeclaim ", r.CLAIM_MISSING),
    ("unbound immediate PersistentVolumeClaims", r.CLAIM_UNBOUND),
    ("Unschedulable", r.UNSCHEDULABLE),
    ("ImagePull", r.IMAGE_PULL),
    ("InvalidImageName", r.IMAGE_PULL),
    ("CreateContainerConfigError", r.CONTAINER_CONFIG),
    ("", r.WAITING),
)
"""Messages of the scheduler or the kubelet about a pod that does not run yet; likewise."""


def match_reason(table: Iterable[tuple[str, Reason]], text: str) -> Reason:
    """The reason of the first row whose part is in the text."""
    return next(reason for part, reason in table if part in text)
