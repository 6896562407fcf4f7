"""What to do about a job now: an ordered list of small checks. The list is the specification.

Each check looks at one question and answers with a Plan, or None to pass the job on. The first answer
counts. The world is looked at, never remembered: whatever event woke us, the answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api import check
from finetune_api.exits import Exit
from finetune_api.logic import find
from finetune_api.report import FinalReport
from finetune_api.status import Phase, Status
from finetune_api.v1alpha1 import GROUP, KIND

from . import retry
from . import status as told
from .backends import pytorchjob
from .model import CreateRun, DeleteRun, Observed, Plan, PodSeen
from .settings import PlanSettings
from .validate import Verdict, validate
from .workload import workload

WAIT = 5.0
"""Seconds until we look again where no event is promised."""


@dataclass(frozen=True)
class Story:
    """One pass over one job."""

    seen: Observed
    settings: PlanSettings
    now: datetime
    verdict: Verdict

    @property
    def spec(self) -> Any:
        return self.seen.resource.get("spec") or {}

    @property
    def status(self) -> Status:
        """The status as it was written last; that of a fresh look if there is none."""
        old = self.seen.resource.get("status")
        return Status.model_validate(old) if old else self.judged

    @property
    def judged(self) -> Status:
        generation = self.seen.resource["metadata"].get("generation")
        return told.judged(self.verdict, now=self.time, generation=generation)

    @property
    def time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def run(self) -> int:
        """Number of the newest run that anyone knows of; 0 before the first."""
        return max([self.status.run or 0, *(r.number for r in self.seen.runs), *(p.run for p in self.seen.pods)])

    @property
    def pods(self) -> tuple[PodSeen, ...]:
        """Pods of the current run, by node rank."""
        return tuple(sorted((p for p in self.seen.pods if p.run == self.run), key=lambda p: p.node_rank))

    def remove_runs(self) -> tuple[DeleteRun, ...]:
        return tuple(DeleteRun(r.name) for r in self.seen.runs if not r.deleting)


def plan(seen: Observed, settings: PlanSettings, now: datetime) -> Plan:
    """The plan for a job as it is seen now (UTC)."""
    story = Story(seen, settings, now, validate(seen.resource, settings))
    return next(answer for each in CHECKS if (answer := each(story)) is not None)


def finished(story: Story) -> Plan | None:
    """A finished job never creates anything again; its children go when their time is over."""
    ended = story.status.completionTime
    if not ended:
        return None
    ttl = find(story.spec, "lifecycle.ttlSecondsAfterFinished")
    if ttl is None or not story.seen.runs:
        return Plan((), story.status)
    left = _after(ended, ttl) - story.now
    if left > timedelta(0):
        return Plan((), story.status, requeue_after=left.total_seconds())
    return Plan(story.remove_runs(), story.status)


def cancelled(story: Story) -> Plan | None:
    if story.spec.get("cancel") is not True:
        return None
    status = told.ended(story.status, Phase.CANCELLED, "Cancelled", "spec.cancel is true.", now=story.time)
    return Plan(story.remove_runs(), status)


def refused(story: Story) -> Plan | None:
    """Refused before the first run. Later, what was resolved at acceptance serves every run."""
    if story.verdict.valid or story.run > 0:
        return None
    return Plan((), story.judged)


def suspended(story: Story) -> Plan | None:
    if story.spec.get("suspend") is not True:
        return None
    message = "spec.suspend is true; set it to false to go on from the last checkpoint."
    return Plan(story.remove_runs(), told.suspended(story.status, message, now=story.time))


def backend_missing(story: Story) -> Plan | None:
    if story.seen.backend:
        return None
    return Plan((), told.backend_missing(story.status, now=story.time), requeue_after=WAIT)


def succeeded(story: Story) -> Plan | None:
    """Success is the trainer's own report on node 0, whatever the backend says."""
    report = _report(story, Exit.OK)
    if report is None:
        return None
    return Plan(story.remove_runs() if _extra_pods(story) else (), told.fold(report, story.status, story.time))


def too_late(story: Story) -> Plan | None:
    limit, start = find(story.spec, "lifecycle.activeDeadlineSeconds"), story.status.startTime
    if limit is None or not start or story.now < _after(start, limit):
        return None
    message = f"The job ran for lifecycle.activeDeadlineSeconds, {limit} s. Raise it, or shorten the training."
    status = told.ended(story.status, Phase.FAILED, "DeadlineExceeded", message, now=story.time)
    return Plan(story.remove_runs(), status)


def failed(story: Story) -> Plan | None:
    """One failed pod ends the run of the whole gang: another run, or the end."""
    cause = retry.failure(story.pods)
    if cause is None:
        return None
    restarts = story.status.restarts or 0
    if not retry.again(cause, restarts, find(story.spec, "lifecycle.maxRestarts")):
        status = told.failed(story.status, cause.exit_code, cause.message, now=story.time)
        return Plan(story.remove_runs(), status)
    status = told.restarting(story.status, restarts + (0 if cause.free else 1), cause.message, now=story.time)
    return Plan(story.remove_runs(), status, requeue_after=WAIT)


def leaving(story: Story) -> Plan | None:
    """The previous run's pods are gone before the next run is created."""
    if any(r.deleting for r in story.seen.runs) or (story.pods and not story.seen.runs):
        return Plan((), story.status, requeue_after=WAIT)
    return None


def starting(story: Story) -> Plan | None:
    if story.seen.runs:
        return None
    if story.verdict.resolution is None:
        return Plan((), story.judged)
    job = check.load({**story.seen.resource, "status": {}})
    work = workload(job, story.verdict.resolution, story.settings, story.run + 1)
    manifest = pytorchjob.render(work, job.metadata.namespace, _owner(story))
    base = story.status if story.run else story.judged
    return Plan((CreateRun(manifest),), told.started(base, work, now=story.time))


def running(story: Story) -> Plan:
    """Nothing to do but to say how far it is."""
    status = told.pods_seen(story.status, story.pods, now=story.time)
    for record in story.seen.records:
        status = told.fold(record, status, story.time)
    return Plan((), status)


CHECKS: tuple[Callable[[Story], Plan | None], ...] = (
    finished, cancelled, refused, suspended, backend_missing, succeeded, too_late, failed, leaving, starting, running,
)  # fmt: skip


def _report(story: Story, code: int) -> FinalReport | None:
    first = next((p for p in story.pods if p.node_rank == 0), None)
    return first.report if first and first.report and first.report.exit_code == code else None


def _extra_pods(story: Story) -> bool:
    """Whether pods still hold GPUs although the run is over."""
    return any(p.phase == "Running" for p in story.pods)


def _after(time: str, seconds: int) -> datetime:
    return datetime.fromisoformat(time) + timedelta(seconds=seconds)


def _owner(story: Story) -> dict[str, Any] | None:
    metadata = story.seen.resource["metadata"]
    if "uid" not in metadata:
        return None
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "name": metadata["name"], "uid": metadata["uid"],
            "controller": True, "blockOwnerDeletion": True}  # fmt: skip
