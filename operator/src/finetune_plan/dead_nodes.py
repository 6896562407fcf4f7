"""Pods that outlive their termination grace period because their node does not confirm that they ended.

They hold back the next run, because two runs must not write to one output. Where the administrator allows it, they
are deleted by force once their node no longer reports them (docs/adr/0030). Called by decide.py.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from .model import DeletePod, Observed, ObservedPod
from .settings import PlanSettings

TERMINATION_OVERDUE = 10.0
"""Seconds after a pod's grace period in which its node may still confirm that the pod ended."""


def late(observed: Observed, now: datetime) -> ObservedPod | None:
    """A pod that is past its termination grace period."""
    ending = (p for p in observed.pods if p.termination_deadline)
    return next((p for p in ending if _after(p.termination_deadline, TERMINATION_OVERDUE) < now), None)


def forced_at(pod: ObservedPod, observed: Observed, settings: PlanSettings) -> datetime | None:
    """When a pod is deleted by force; None if it is not. Pods without their run may not be the job's own."""
    own = any(run.number == pod.run for run in observed.runs)
    if settings.dead_node_seconds is None or not (own and pod.abandoned and pod.termination_deadline):
        return None
    return _after(pod.termination_deadline, settings.dead_node_seconds)


def deletions(
    observed: Observed, settings: PlanSettings, now: datetime
) -> tuple[tuple[DeletePod, ...], float | None]:
    """What is deleted by force now, and the seconds until a next pod is due."""
    times = [(pod, at) for pod in observed.pods if (at := forced_at(pod, observed, settings))]
    left = min(((at - now).total_seconds() for _, at in times if at > now), default=None)
    return tuple(DeletePod(pod.name, pod.uid) for pod, at in times if at <= now), left


def sentence(pod: ObservedPod, observed: Observed, settings: PlanSettings) -> str:
    """Whether and when the pod is deleted by force; empty where that is switched off."""
    if settings.dead_node_seconds is None:
        return ""
    if at := forced_at(pod, observed, settings):
        return f"It is deleted by force at {at:%H:%M:%S} UTC."
    return "It is not deleted by force, because its node still reports it or its run is gone."


def _after(time: str, seconds: float) -> datetime:
    return datetime.fromisoformat(time) + timedelta(seconds=seconds)
