"""How long pods of the job were bound to nodes, which is what a deadline limits.

Suspended, queued and unscheduled pods hold no node, and neither does a job that waits for its next run. The status
keeps the closed intervals as seconds and the beginning of the open one. Times are those of the pods where they are
known, so an operator that was down counts the same. Of pods that ended and disappeared while it was down the end is
unknown: their time counts until it looks again, or, where others are bound by then, until the last progress.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from finetune_api.resource.status import ActiveStatus, Status

from .model import ObservedPod


def counted(status: Status, pods: Iterable[ObservedPod], now: str) -> ActiveStatus | None:
    """The active time as of `now`; None until the first pod was bound."""
    active, pods = status.active, tuple(pods)
    bound = [p.bound_since for p in pods if p.bound_since]
    ends = [p.ended_at for p in pods if p.ended_at]
    if bound:
        known, since = active or ActiveStatus(seconds=0), min(*bound, now)
        if known.since and (known.since >= since or since not in bound):  # its clock may be ahead of ours
            return known
        earlier = closed(known, max(ends, default=known.since or now), since)  # by pods before these
        return earlier and earlier.model_copy(update={"since": since})
    whole = len(ends) >= ((status.layout and status.layout.nodes) or 1)  # one that is gone may have ended last
    return closed(active, max(ends) if whole else now, now)


def carried(active: ActiveStatus | None, now: str) -> ActiveStatus | None:
    """With the time up to now as seconds, whatever is found of the pods later."""
    until = closed(active, now, now)
    since = active and active.since
    return until and until.model_copy(update={"since": since and max(since, now)})


def closed(active: ActiveStatus | None, end: str, now: str) -> ActiveStatus | None:
    """With its open interval ended at `end`, which is at most `now`."""
    if active is None or not active.since:
        return active
    added = max(0, int(_seconds(active.since, min(end, now))))
    return active.model_copy(update={"seconds": (active.seconds or 0) + added, "since": None})


def seconds_left(status: Status, limit: int, now: str) -> float | None:
    """Seconds until the deadline is over, 0 or less if it is; None while no time passes."""
    active = status.active or ActiveStatus()
    left = limit - (active.seconds or 0)
    if active.since:
        return left - _seconds(active.since, now)
    return 0.0 if left <= 0 else None


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
