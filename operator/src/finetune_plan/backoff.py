"""When the next run starts after a failure: later with every failure in a row for one reason.

Progress ends the row: a checkpoint newer than the newest one at the last restart. All counts are in the status, so a
restart of the operator changes nothing. The jitter is a hash of the UID of the job and the attempt: jobs that fail
together do not start together, and equal observations still give equal plans.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from hashlib import sha256

from finetune_api.resource.status import RetryStatus, Status
from finetune_api.runtime import exits

from .retry import Failure
from .settings import PlanSettings
from .statuses import MESSAGE_LENGTH

JITTER = 0.2
"""Largest share of a delay that is added or taken away."""


def counted(status: Status, cause: Failure, saved: int, allowed: int) -> RetryStatus:
    """One more restart. `saved`: newest checkpoint that a pod reported at its end; 0 if none did."""
    before, reason = status.retry or RetryStatus(), exits.meaning(cause.exit_code).reason
    known = before.checkpointStep or 0
    step = max(known, saved, (status.progress and status.progress.checkpointStep) or 0)
    stuck = step == known
    return before.model_copy(update={
        "run": status.run,
        "reason": reason,
        "message": cause.message[:MESSAGE_LENGTH],
        "attempts": 1 + ((before.attempts or 0) if stuck and reason == before.reason else 0),
        "freeRestarts": int(cause.free) + ((before.freeRestarts or 0) if stuck else 0),
        "allowed": allowed,
        "checkpointStep": step,
        "nextTime": None,
    })  # fmt: skip


def scheduled(retry: RetryStatus, uid: str, now: datetime, settings: PlanSettings, *, free: bool) -> RetryStatus:
    """With the time of the next run. The first free restart does not wait: what took the pods away is over."""
    failures = (retry.freeRestarts or 1) - 1 if free else retry.attempts or 1
    if not failures or not settings.backoff_seconds:
        return retry
    delay = min(settings.max_backoff_seconds, settings.backoff_seconds * 2.0 ** min(failures - 1, 60))
    time = now + timedelta(seconds=math.ceil(delay * _jitter(uid, failures)))
    return retry.model_copy(update={"nextTime": time.strftime("%Y-%m-%dT%H:%M:%SZ")})


def seconds_left(status: Status, now: datetime, settings: PlanSettings) -> float:
    """Seconds until the next run may start; 0 or less if nothing has to wait.

    A time that is further away than the longest delay was written by a clock that was ahead, and does not count.
    """
    due = status.retry and status.retry.nextTime
    left = (datetime.fromisoformat(due) - now).total_seconds() if due else 0.0
    return left if left <= settings.max_backoff_seconds * (1 + JITTER) + 1 else 0.0


def _jitter(uid: str, attempt: int) -> float:
    drawn = int.from_bytes(sha256(f"{uid}/{attempt}".encode()).digest()[:8]) / 2**64
    return 1 + JITTER * (2 * drawn - 1)
