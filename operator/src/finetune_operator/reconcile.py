"""One pass over one job: observe, plan, apply. The only caller of all three.

The result depends on the present state, not on the event that triggered the pass. An error delays the next pass.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from finetune_plan import statuses
from finetune_plan.backends.protocol import Backend
from finetune_plan.decide import plan
from finetune_plan.model import CreateRun, Observed, Plan

from . import metrics
from .apply import Applier
from .errors import BackendMissing, ClusterError, Conflict, NotFound, Refused, TimedOut, Unavailable, WebhookFailed
from .identity import Key, log_fields
from .observe import Observer
from .settings import Settings
from .status_change import StatusChange
from .workqueue import WorkQueue

T = TypeVar("T")

log = logging.getLogger(__name__)

LONGEST_ERROR = 500
"""Characters of an unexpected error in a job's status."""
UNAVAILABLE_RETRY_SECONDS = 8.0
"""Longest delay between passes while the API server is unavailable: an outage does not count against the job."""


class Reconciler:
    """Holds only state that may be lost: the API server's last refusals, and when progress was written."""

    def __init__(
        self, observer: Observer, applier: Applier, settings: Settings, backend: Backend, clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self.observer, self._applier, self._settings, self._backend = observer, applier, settings, backend
        self._cluster, self._cache = applier.cluster, applier.cache
        self._plan_settings, self._clock, self._now = settings.plan(), clock, now
        self._refusals: dict[Key, Refused | WebhookFailed] = {}
        self._written: dict[Key, float] = {}

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Seconds until the next one is due without an event, or None. Raises ClusterError."""
        return await self._in_time(self._pass(key))

    async def report_bug(self, key: Key, error: Exception) -> None:
        """Say in the job's status that the operator failed on it. Raises ClusterError."""
        await self._in_time(self._report_bug(key, error))

    async def _in_time(self, work: Awaitable[T]) -> T:
        """Give up what takes too long: a pass may be interrupted anywhere, and one that never ends holds a worker."""
        seconds = self._settings.pass_seconds
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise TimedOut(f"the pass took longer than {seconds:g} s") from error

    async def _pass(self, key: Key) -> float | None:
        observed = await self.observer.observe(key, self._refusals.get(key))
        if observed is None:
            self._forget(key)
            return None
        now = self._now()
        self._applier.report_skipped(key, dict(observed.resource), _time(now))
        answer = plan(observed, self._plan_settings, now, self._backend)
        change = self._change(key, observed, answer)
        try:
            changed = await self._applier.apply(observed, answer, change, _time(now))
        except (Conflict, NotFound):
            await self._refresh(key)
            raise
        except (Refused, WebhookFailed) as error:
            if any(isinstance(a, CreateRun) for a in answer.actions):
                self._refusals[key] = error
            raise
        except BackendMissing:
            self.observer.invalidate_backend()
            raise
        self._refusals.pop(key, None)
        self.observer.progress.taken(key, observed.records)
        return 0.0 if changed else self._next(observed, answer, change)

    async def _report_bug(self, key: Key, error: Exception) -> None:
        job, now = self._cache.job(key), _time(self._now())
        if job is None or job["status"].get("completionTime"):
            return
        message = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
        generation = job["metadata"].get("generation")
        after = statuses.internal_error(job["status"], message, now=now, generation=generation)
        change = StatusChange(job["status"], after)
        if change.patch:
            await self._applier.report(key, job, change, now)

    def _change(self, key: Key, observed: Observed, answer: Plan) -> StatusChange:
        """What is written to the status, and when: a change of text alone waits until progress is due."""
        change = StatusChange(observed.resource["status"], answer.status.model_dump(mode="json", exclude_none=True))
        if answer.actions or observed.records or not change.can_wait:
            self._written[key] = self._clock()
        elif change.patch:
            left = self._written.setdefault(key, self._clock()) + self._text_seconds() - self._clock()
            if left > 0:
                return replace(change, wait_seconds=left)
            self._written[key] = self._clock()
        return change

    def _text_seconds(self) -> float:
        """Seconds that a change of text waits: the more jobs, the longer, so that jobs waiting for a run go first."""
        share = self._cache.working() / self._settings.progress_reads_per_second
        return max(self._settings.progress_seconds, share)

    def _next(self, observed: Observed, answer: Plan, change: StatusChange) -> float | None:
        held = answer.status.completionTime is None and any(r.suspended for r in observed.runs)
        return _earliest(answer.requeue_after, change.wait_seconds, self.observer.queue_seconds() if held else None)

    async def _refresh(self, key: Key) -> None:
        live = await self._cluster.get_job(key)
        if live:
            self._cache.jobs.put(live)
        else:
            self._cache.jobs.forget(key)

    def _forget(self, key: Key) -> None:
        self._refusals.pop(key, None)
        self._written.pop(key, None)


async def _report(reconciler: Reconciler, key: Key, error: Exception) -> None:
    try:
        await reconciler.report_bug(key, error)
    except Exception as second:  # noqa: BLE001 - the next attempt reports it again; nothing ends the worker
        log.warning("error not reported", extra=log_fields(key) | {"error": str(second)})


async def process(queue: WorkQueue, reconciler: Reconciler, key: Key) -> None:
    """Reconcile a job that was taken from the queue, and queue it again as needed."""
    with metrics.RECONCILE_SECONDS.time():
        try:
            after = await reconciler.reconcile(key)
        except (Conflict, NotFound) as error:
            metrics.ERRORS.labels(reason=error.reason).inc()
            log.info("reconcile conflict", extra=log_fields(key) | {"error": str(error), "seconds": queue.retry(key)})
        except ClusterError as error:
            metrics.ERRORS.labels(reason=error.reason).inc()
            seconds = (
                queue.retry(key, UNAVAILABLE_RETRY_SECONDS) if isinstance(error, Unavailable) else queue.retry(key)
            )
            log.warning("reconcile failed", extra=log_fields(key) | {"error": str(error), "seconds": seconds})
        except Exception as error:  # a bug that one job triggers must not stop the others
            metrics.ERRORS.labels(reason="Bug").inc()
            log.exception("reconcile failed", extra=log_fields(key) | {"seconds": queue.retry(key)})
            await _report(reconciler, key, error)
        else:
            queue.succeeded(key)
            if after is not None:
                queue.add(key, after)
        finally:
            queue.done(key)


def _earliest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _time(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
