"""Conditions of a job: their names, and the one way to set them."""

from __future__ import annotations

from .status import Condition, ConditionStatus

READY = "Ready"
"""True when the job has succeeded (kstatus reads this one)."""
ACCEPTED = "Accepted"
"""The job makes sense, and this version and this cluster can do it."""
DATA_READY = "DataReady"
"""The rows were read, and can be trained on."""
PODS_READY = "PodsReady"
"""Every pod of the run is running."""
TRAINING = "Training"
"""Optimizer steps are being made."""
SUSPENDED = "Suspended"
COMPLETE = "Complete"
FAILED = "Failed"


def condition(kind: str, status: bool | None, reason: str, message: str, now: str) -> Condition:
    """A condition as of `now` (RFC 3339). status: None means Unknown."""
    value = {True: ConditionStatus.TRUE, False: ConditionStatus.FALSE, None: ConditionStatus.UNKNOWN}[status]
    return Condition(type=kind, status=value, reason=reason, message=message, lastTransitionTime=now)


def set_condition(conditions: tuple[Condition, ...], new: Condition) -> tuple[Condition, ...]:
    """The conditions with one of them set. Its transition time moves only when its status changes."""
    old = next((c for c in conditions if c.type == new.type), None)
    if old is None:
        return (*conditions, new)
    if old.status is new.status:
        new = new.model_copy(update={"lastTransitionTime": old.lastTransitionTime})
    return tuple(new if c.type == new.type else c for c in conditions)
