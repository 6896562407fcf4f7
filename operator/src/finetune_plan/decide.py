"""What to do about a job now: an ordered list of small checks. The list is the specification.

Each check looks at one question and answers with a Plan, or None to pass the job on. The first answer
counts. The world is looked at, never remembered: whatever event woke us, the answer is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from finetune_api.resource.conditions import PODS_READY
from finetune_api.resource.names import GROUP, KIND
from finetune_api.resource.status import Phase, Status
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem

from . import results, retry
from . import status as told
from .backends import pytorchjob
from .model import CreateRun, DeleteRun, Observed, Plan, PodSeen
from .resolve import Verdict, validate
from .settings import PlanSettings
from .workload import Workload, workload

WAIT = 5.0
"""Seconds until we look again where no event is promised."""

HEARSAY = 10.0
"""Seconds after the loss of a peer in which its own end, and with it the cause, is waited for."""

OVERDUE = 10.0
"""Seconds after a pod's grace period in which its node may say that the pod has ended."""

ONE_NODE = {"ReadWriteOnce", "ReadWriteOncePod"}
"""Access modes of a claim that pods of one node mount."""

UNSHARED = 60.0
"""Seconds until a claim that not all nodes can mount is looked at again: somebody may make another of its name."""

RELEASE = 60.0
"""Seconds after the end in which pods still running may end by themselves, before they are removed."""


@dataclass(frozen=True)
class Story:
    """One pass over one job. What costs time is worked out once, and only if a check asks."""

    seen: Observed
    settings: PlanSettings
    now: datetime

    @property
    def spec(self) -> Any:
        return self.seen.resource.get("spec") or {}

    @cached_property
    def verdict(self) -> Verdict:
        return validate(self.seen.resource, self.settings)

    @cached_property
    def written(self) -> Status:
        """The status as it was written last."""
        status = Status.model_validate(self.seen.resource.get("status") or {})
        return status.model_copy(update={"observedGeneration": self.generation})

    @cached_property
    def status(self) -> Status:
        """The status to go on from: judged anew until the first run, which pins what was resolved."""
        return self.written if self.written.completionTime or self.run else self.judged

    @property
    def judged(self) -> Status:
        return told.judged(self.verdict, now=self.time, generation=self.generation, before=self.written)

    @property
    def generation(self) -> int | None:
        number: int | None = self.seen.resource["metadata"].get("generation")
        return number

    @property
    def time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    @cached_property
    def run(self) -> int:
        """Number of the newest run that anyone knows of; 0 before the first."""
        return max([self.written.run or 0, *(r.number for r in self.seen.runs), *(p.run for p in self.seen.pods)])

    @property
    def pods(self) -> tuple[PodSeen, ...]:
        """Pods of the current run, by node rank."""
        return tuple(sorted((p for p in self.seen.pods if p.run == self.run), key=lambda p: p.node_rank))

    def remove_runs(self, newest: int | None = None) -> tuple[DeleteRun, ...]:
        """Deletions of the runs up to a number, without those that are being deleted."""
        newest = self.run if newest is None else newest
        return tuple(DeleteRun(r.name, r.uid) for r in self.seen.runs if r.number <= newest and not r.deleting)


def plan(seen: Observed, settings: PlanSettings, now: datetime) -> Plan:
    """The plan for a job as it is seen now (UTC)."""
    story = Story(seen, settings, now)
    answer = next(answer for each in CHECKS if (answer := each(story)) is not None)
    return replace(answer, requeue_after=_sooner(answer.requeue_after, _deadline(story, answer.status)))


def finished(story: Story) -> Plan | None:
    """A finished job never creates anything again; its children go when their time is over."""
    ended = story.status.completionTime
    if not ended:
        return None
    times = [RELEASE] if any(p.phase == "Running" for p in story.pods) else []
    ttl = find(story.spec, "lifecycle.ttlSecondsAfterFinished")
    times += [] if ttl is None else [ttl]
    if not times or not any(not r.deleting for r in story.seen.runs):
        return Plan((), story.status)
    left = (_after(ended, min(times)) - story.now).total_seconds()
    return Plan((), story.status, requeue_after=left) if left > 0 else Plan(story.remove_runs(), story.status)


def cancelled(story: Story) -> Plan | None:
    if story.spec.get("cancel") is not True:
        return None
    status = told.ended(story.status, Phase.CANCELLED, "Cancelled", "spec.cancel is true.", now=story.time)
    return Plan(story.remove_runs(), status)


def refused(story: Story) -> Plan | None:
    """Refused before the first run. Later, what was resolved at acceptance serves every run."""
    if story.run or story.verdict.valid:
        return None
    return Plan((), story.judged)


def suspended(story: Story) -> Plan | None:
    if story.spec.get("suspend") is not True:
        return None
    message = "spec.suspend is true; set it to false to go on from the last checkpoint."
    return Plan(story.remove_runs(), told.suspended(story.status, message, now=story.time))


def succeeded(story: Story) -> Plan | None:
    """Success is the trainer's own report on node 0, whatever the backend says."""
    report = _report(story, Exit.OK)
    if report is None:
        return None
    status = told.fold(report, story.status, story.time)
    return Plan((), status, remember=results.remember(story.spec, status))


def known(story: Story) -> Plan | None:
    """The output of this very job is there already, made by a job that was deleted since."""
    if story.run or not story.seen.claim.annotations:
        return None
    resolution, resolved = story.verdict.resolution, story.status.resolved
    if resolution is None or resolved is None:
        return None
    result = results.remembered(resolution.spec, story.seen.claim.annotations, resolved.digest or "")
    if result is None:
        return None
    return Plan((), told.known(story.status, result, results.sentence(resolution.spec), now=story.time))


def unshared(story: Story) -> Plan | None:
    """Pods of several nodes on a claim that one node mounts: all but one would wait for ever."""
    resolution, modes = story.verdict.resolution, story.seen.claim.access_modes
    if story.run or resolution is None or resolution.layout.nodes == 1 or not modes or set(modes) - ONE_NODE:
        return None
    problem = results.unshared(resolution.spec, modes, resolution.layout.nodes)
    verdict = Verdict((problem,), resolution)
    status = told.judged(verdict, now=story.time, generation=story.generation, before=story.written)
    return Plan((), status, requeue_after=UNSHARED)


def too_late(story: Story) -> Plan | None:
    left = _deadline(story, story.status)
    if left is None or left > 0:
        return None
    limit = find(story.spec, "lifecycle.activeDeadlineSeconds")
    message = f"The job ran for lifecycle.activeDeadlineSeconds, {limit} s. Raise it, or shorten the training."
    status = told.ended(story.status, Phase.FAILED, "DeadlineExceeded", message, now=story.time)
    return Plan(story.remove_runs(), status)


def leaving(story: Story) -> Plan | None:
    """The previous run's pods are gone before the next run is created, and how they end says nothing any more."""
    if over := story.remove_runs(story.run if told.is_given_up(story.status) else story.run - 1):
        return Plan(over, story.status, requeue_after=WAIT)
    if any(r.deleting for r in story.seen.runs) or (story.pods and not story.seen.runs):
        return Plan((), told.overdue(story.status, _overdue(story), now=story.time), requeue_after=WAIT)
    return None


def queued(story: Story) -> Plan | None:
    """A queue that takes a run's pods away gives them back; that is no failure."""
    if not any(r.suspended for r in story.seen.runs):
        return None
    return Plan((), told.queued(story.status, now=story.time))


def failed(story: Story) -> Plan | None:
    """One failed pod ends the run of the whole gang: another run, or the end."""
    cause = retry.failure(story.pods) or _incomplete(story)
    if cause is None:
        return None
    if (left := _hearsay(story, cause)) > 0:
        return Plan((), story.status, requeue_after=left)
    restarts = story.status.restarts or 0
    if not retry.again(cause, restarts, find(story.spec, "lifecycle.maxRestarts")):
        # The run stays, for its logs; the Training Operator, or `finished`, ends the pods that still run.
        return Plan((), told.failed(story.status, cause.exit_code, cause.message, now=story.time))
    status = told.restarting(story.status, restarts + (0 if cause.free else 1), cause.message, now=story.time)
    return Plan(story.remove_runs(), status, requeue_after=WAIT)


def backend_missing(story: Story) -> Plan | None:
    if story.seen.backend or story.seen.runs:
        return None
    return Plan((), told.backend_missing(story.status, now=story.time), requeue_after=WAIT)


def starting(story: Story) -> Plan | None:
    """Claim the next run in the status and create it; a claimed run that was never seen is created again."""
    if story.seen.runs:
        return None
    if problem := _hindrance(story):
        return Plan((), told.hindered(story.status, problem, now=story.time))
    number = story.run if told.is_claimed(story.status) else story.run + 1
    work = _work(story, number)
    manifest = pytorchjob.render(work, story.seen.resource["metadata"].get("namespace"), _owner(story))
    previous = f"{story.seen.resource['metadata']['name']}-{number - 1}" if number > 1 else ""
    if number == story.run:
        said = story.seen.refusal
        status = told.create_refused(story.status, said, now=story.time) if said else story.status
    else:
        status = told.claimed(told.started(story.status, work, now=story.time), now=story.time)
    return Plan((CreateRun(manifest, previous),), status)


def running(story: Story) -> Plan:
    """Nothing to do but to say how far it is."""
    status = told.seen_running(story.status, story.run, now=story.time)
    status = told.pods_seen(status, story.pods, story.seen.pods_refusal, now=story.time)
    for record in story.seen.records:
        status = told.fold(record, status, story.time)
    return Plan((), status)


def missing_pods(status: Mapping[str, Any], pods: Iterable[PodSeen]) -> int:
    """How many pods of a run that had all of them are gone. `status` is as it was written.

    None returns to Pending: one that is pending took the place of another.
    """
    if not any(c["type"] == PODS_READY and c["status"] == "True" for c in status.get("conditions") or ()):
        return 0
    left = sum(p.run == status.get("run") and p.phase != "Pending" for p in pods)
    return max(0, (find(status, "layout.nodes") or 1) - left)


CHECKS: tuple[Callable[[Story], Plan | None], ...] = (
    finished, succeeded, cancelled, refused, known, unshared, suspended, too_late, leaving, queued, failed,
    backend_missing, starting, running,
)  # fmt: skip


def _overdue(story: Story) -> str:
    """Name of a pod that was told to leave and should be gone; empty if there is none."""
    late = (p for p in story.seen.pods if p.leaves_by and _after(p.leaves_by, OVERDUE) < story.now)
    return next((p.name for p in late), "")


def _report(story: Story, code: int) -> FinalReport | None:
    first = next((p for p in story.pods if p.node_rank == 0), None)
    return first.report if first and first.report and first.report.exit_code == code else None


def _incomplete(story: Story) -> retry.Failure | None:
    """A pod that was deleted is replaced behind our back, with nobody to talk to: the gang starts again."""
    lost = missing_pods(story.seen.resource.get("status") or {}, story.seen.pods)
    if not story.seen.runs or not lost:
        return None
    return retry.Failure(Exit.PEER_LOST, f"Of the pods that ran, {lost} were deleted.", free=True)


def _hearsay(story: Story, cause: retry.Failure) -> float:
    """Seconds in which a peer may still say why it was lost: nothing else is known, and it still runs for us."""
    running = any(p.phase == "Running" for p in story.pods)
    told = [p.report.time for p in story.pods if p.exit_code == Exit.PEER_LOST and p.report]
    if cause.exit_code != Exit.PEER_LOST or not running or not told:
        return 0.0
    return min(HEARSAY, min(told) + HEARSAY - story.now.timestamp())


def _hindrance(story: Story) -> Problem | None:
    """Why an accepted job cannot have its next run: settings, or an operator that no longer knows its words."""
    hindering = (p for p in story.verdict.problems if p.reason != "Unsupported")  # the pinned trainer decides that
    return next(hindering, None) if story.run else None


def _work(story: Story, number: int) -> Workload:
    """The workload of a run. The first one is resolved; later ones take what was resolved then."""
    if story.verdict.resolution is None:
        raise ValueError("a job that makes no sense has no workload")
    uid = story.seen.resource["metadata"].get("uid", "")
    work = workload(story.verdict.resolution, story.settings, number, uid)
    resolved, layout = story.written.resolved, story.written.layout
    if not story.run or not resolved or not resolved.runConfig or not layout:
        return work
    return replace(
        work,
        config_json=resolved.runConfig,
        image=resolved.image or work.image,
        nodes=layout.nodes or work.nodes,
        processes_per_node=layout.gpusPerNode or work.processes_per_node,
    )


def _deadline(story: Story, status: Status) -> float | None:
    """Seconds until lifecycle.activeDeadlineSeconds is over; None if there is no such time."""
    limit = find(story.spec, "lifecycle.activeDeadlineSeconds")
    if limit is None or not status.startTime or status.completionTime or status.phase is Phase.SUSPENDED:
        return None
    return (_after(status.startTime, limit) - story.now).total_seconds()


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((t for t in (one, other) if t is not None), default=None)


def _after(time: str, seconds: float) -> datetime:
    return datetime.fromisoformat(time) + timedelta(seconds=seconds)


def _owner(story: Story) -> dict[str, Any] | None:
    metadata = story.seen.resource["metadata"]
    if "uid" not in metadata:
        return None
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "name": metadata["name"], "uid": metadata["uid"],
            "controller": True, "blockOwnerDeletion": True}  # fmt: skip
