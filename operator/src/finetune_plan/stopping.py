"""How a job stops: which pods still hold something, when they are deleted, and what is said meanwhile.

As in batch/v1, a verdict that the spec does not hold is recorded first (condition FailureTarget) and the job is over
when its pods are (docs/adr/0026). Called by decide.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from finetune_api.resource import reasons as r

from .model import ObservedPod

RELEASE_SECONDS = 60.0
"""Seconds in which pods may exit by themselves after a failure or a success, before their run is deleted."""

LONGEST_LIST = 4
"""Names of pods in a message."""


def active(pods: Iterable[ObservedPod]) -> tuple[ObservedPod, ...]:
    """Pods that have not ended: they hold quota, and GPUs if they are bound to a node."""
    return tuple(p for p in pods if p.phase not in ("Succeeded", "Failed"))


def undeleted(pods: Iterable[ObservedPod]) -> tuple[ObservedPod, ...]:
    """Active pods that are not being deleted."""
    return tuple(p for p in active(pods) if not p.termination_deadline)


def message(pods: tuple[ObservedPod, ...], others: tuple[str, ...], gpus: int, release: datetime | None) -> str:
    """Which pods have not ended, what they hold (`gpus` each) and until when. `release`: None if it is now.

    others: what is left where no pod is known."""
    if not pods:
        return r.STOPPING.text(left=name_list([*others]), until="").strip()
    held = f" with {len(pods) * gpus} GPUs" if gpus else ""
    left = f"{len(pods)} pod{'s' * (len(pods) > 1)}{held} ({name_list([p.name for p in pods])})"
    return r.STOPPING.text(left=left, until=_until(pods, release))


def name_list(names: list[str]) -> str:
    """Names as a sentence has them, the first ones if there are many."""
    more = f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
    return ", ".join(names[:LONGEST_LIST]) + more


def _until(pods: tuple[ObservedPod, ...], release: datetime | None) -> str:
    if undeleted(pods) and release is None:
        return "They are being deleted."
    if undeleted(pods):
        return f"They are deleted at {release:%Y-%m-%dT%H:%M:%SZ} unless they exit before."
    return f"They have until {max(p.termination_deadline for p in pods)} to save a checkpoint and exit."
