"""Whether the pods of a run are the ones that it began with. Called by decide.py, statuses.py and observe.py."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from finetune_api.resource.conditions import PODS_READY
from finetune_api.validation.predicates import find

from .model import ObservedPod


def digest(pods: Iterable[ObservedPod]) -> str:
    """Of the pods' UIDs: short, and the same in any order."""
    return hashlib.sha256(" ".join(sorted(p.uid for p in pods)).encode()).hexdigest()[:16]


def has_changed(status: Mapping[str, Any], pods: Iterable[ObservedPod]) -> bool:
    """Whether a pod of a run that was complete is gone or was replaced. `status` is as it was written."""
    current = [p for p in pods if p.run == status.get("run")]
    if known := status.get("podsDigest"):
        return bool(digest(current) != known)
    # An operator that kept no digest wrote this status. A running pod never returns to Pending: those are others.
    ready = any(c["type"] == PODS_READY and c["status"] == "True" for c in status.get("conditions") or ())
    return ready and sum(p.phase != "Pending" for p in current) < (find(status, "layout.nodes") or 1)
