"""How long a job may hold nodes, and how long its children stay: its own keys, or the operator's defaults.

The defaults are pinned when the job is accepted: a later change of the settings changes no accepted job.
"""

from __future__ import annotations

from finetune_api.resource.conditions import ACCEPTED
from finetune_api.resource.status import ConditionStatus, Resolved, Status

from .job_settings import JobSettings
from .settings import PlanSettings


def pinned(status: Status, before: Status, settings: PlanSettings) -> Status:
    """The status of a job without a run, with the defaults; `before` is what was written last."""
    if status.resolved is None:
        return status
    old = before.resolved if _accepted(before) else None
    defaults = old or Resolved(
        activeDeadlineSeconds=settings.active_deadline_seconds,
        ttlSecondsAfterFinished=settings.ttl_seconds_after_finished,
    )
    keys = ("activeDeadlineSeconds", "ttlSecondsAfterFinished")
    pins = {key: getattr(defaults, key) for key in keys}
    return status.model_copy(update={"resolved": status.resolved.model_copy(update=pins)})


def active_deadline(job: JobSettings, status: Status) -> int | None:
    """Seconds for which pods of the job may be bound to nodes."""
    own, resolved = job.lifecycle.active_deadline.value, status.resolved or Resolved()
    return resolved.activeDeadlineSeconds if own is None else own


def ttl(job: JobSettings, status: Status) -> int | None:
    """Seconds after the end until the children are removed."""
    own, resolved = job.lifecycle.ttl.value, status.resolved or Resolved()
    return resolved.ttlSecondsAfterFinished if own is None else own


def _accepted(status: Status) -> bool:
    return any(c.type == ACCEPTED and c.status is ConditionStatus.TRUE for c in status.conditions or ())
