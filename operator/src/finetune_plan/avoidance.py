"""Nodes that the next runs of a job avoid: a GPU failed there, or the kubelet could not give a pod its devices.

The next run would most likely go back to such a node, since it has free GPUs. The status keeps the newest few; all
are dropped when pods fit nowhere else (docs/adr/0030). Called by decide.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from finetune_api.resource.status import AvoidedNode, Status
from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit

from .model import ObservedPod
from .retry import ADMISSION_ERROR, Failure

MOST = 3
"""Nodes that are avoided at once."""

PATIENCE_SECONDS = 300.0
"""Seconds for which pods may fit nowhere else: an autoscaler has added a node by then."""


def blaming(status: Status, cause: Failure) -> Status:
    """With the node that the failure of the current run is blamed on, if it is."""
    if not cause.node:
        return status
    hardware = cause.exit_code == Exit.HARDWARE_FAILED
    reason = exits.meaning(cause.exit_code).reason if hardware else ADMISSION_ERROR
    others = (n for n in status.avoidedNodes or () if n.name != cause.node)
    nodes = (*others, AvoidedNode(name=cause.node, reason=reason, run=status.run))[-MOST:]
    return status.model_copy(update={"avoidedNodes": nodes})


def names(status: Status) -> tuple[str, ...]:
    """Names of the nodes to avoid."""
    return tuple(n.name for n in status.avoidedNodes or () if n.name)


def sentence(status: Status) -> str:
    """The nodes as a sentence has them."""
    return ", ".join(f"{n.name} ({n.reason} in run {n.run})" for n in status.avoidedNodes or ())


def seconds_left(status: Status, pods: Iterable[ObservedPod], now: datetime) -> float | None:
    """Seconds until the nodes are dropped; None while pods of the run fit elsewhere, or where none is avoided."""
    since = min((p.unschedulable_since for p in pods if p.unschedulable_since), default="")
    if not since or not status.avoidedNodes:
        return None
    return (datetime.fromisoformat(since) + timedelta(seconds=PATIENCE_SECONDS) - now).total_seconds()
