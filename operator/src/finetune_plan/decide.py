"""What to do about a job now: an ordered list of small checks. The list is the specification.

Each check answers one question with a Plan, or returns None to pass the job on. The first answer counts. Decisions
depend on the observed state alone, never on the event that triggered the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from finetune_api.resource import names, reasons
from finetune_api.resource.names import GROUP, KIND
from finetune_api.resource.status import Status
from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_api.validation.problem import Problem

from . import (
    active_time,
    avoidance,
    backoff,
    contract,
    dead_nodes,
    gang,
    job_settings,
    lifetimes,
    network,
    results,
    retry,
    statuses,
    stopping,
)
from .backends.protocol import Backend
from .job_settings import JobSettings
from .model import CreateRun, DeleteRun, Observed, ObservedPod, Plan
from .resolve import ABOUT_PODS, Verdict, is_cpu, validate
from .settings import PlanSettings
from .workload import Workload, workload

POLL_SECONDS = 5.0
"""Seconds until the next pass where no event is guaranteed."""

PEER_LOST_GRACE = 10.0
"""Seconds after a rank reports a lost peer in which the peer's own failure, which is the cause, is waited for."""

ONE_NODE = {"ReadWriteOnce", "ReadWriteOncePod"}
"""Access modes of a claim that pods of only one node can mount."""

CLAIM_POLL_SECONDS = 60.0
"""Seconds until a claim that not all nodes can mount is read again: it may have been recreated."""

NODES_POLL_SECONDS = 60.0
"""Seconds until nodes are read again that show no network, or one that the job cannot use: they may change."""

FIXED_AT_ACCEPTANCE = {"Unsupported", "OutputNotKept", "OutputNotShared", *ABOUT_PODS}
"""Reasons that count only at acceptance: later runs keep the trainer, the output and the pods that were accepted."""

SILENT_SECONDS = 60.0
"""Seconds after which a run that the backend's controller has not reconciled is reported."""

AT_ONCE = {reasons.CANCELLED.name, reasons.DEADLINE_EXCEEDED.name}
"""Verdicts that end the pods. After a failure the backend does, and the run is kept for its logs."""


NO_PROGRESS = "Restarts are free, but {count} in a row brought no new checkpoint."


@dataclass(frozen=True)
class ReconcileContext:
    """One pass over one job. Expensive values are computed once, and only if a check needs them."""

    observed: Observed
    settings: PlanSettings
    now: datetime
    backend: Backend

    @cached_property
    def job(self) -> JobSettings:
        return job_settings.read(self.observed.resource)

    @cached_property
    def verdict(self) -> Verdict:
        pinned = network.pinned_name(self.job, self.written) if self.run else ""
        return validate(self.observed.resource, self.settings, pinned_network=pinned, nodes=self.observed.nodes)

    @cached_property
    def written(self) -> Status:
        """The status as it was written last, with the time of its pods since then."""
        status = Status.model_validate(self.observed.resource.get("status") or {})
        active = active_time.counted(status, self.observed.pods, self.time)
        status = status if status.completionTime else status.model_copy(update={"active": active})
        return statuses.recovered(status.model_copy(update={"observedGeneration": self.generation}), now=self.time)

    @cached_property
    def status(self) -> Status:
        """The status to start from: validated on every pass until the first run, which pins what was resolved."""
        return self.written if self.written.completionTime or self.run else self.admission

    @property
    def admission(self) -> Status:
        status = statuses.admission(self.verdict, now=self.time, generation=self.generation, before=self.written)
        return lifetimes.pinned(status, self.written, self.settings)

    @property
    def generation(self) -> int | None:
        number: int | None = self.observed.resource["metadata"].get("generation")
        return number

    @property
    def uid(self) -> str:
        found: str = self.observed.resource["metadata"].get("uid", "")
        return found

    @property
    def time(self) -> str:
        return self.now.strftime("%Y-%m-%dT%H:%M:%SZ")

    @cached_property
    def run(self) -> int:
        """Number of the newest run that is known; 0 before the first."""
        return max(
            [self.written.run or 0, *(r.number for r in self.observed.runs), *(p.run for p in self.observed.pods)]
        )

    @property
    def pods(self) -> tuple[ObservedPod, ...]:
        """Pods of the current run, by node rank."""
        return tuple(sorted((p for p in self.observed.pods if p.run == self.run), key=lambda p: p.node_rank))

    @property
    def orphans(self) -> tuple[str, ...]:
        """What is left of a run that was created and never observed: it was deleted before it could be."""
        unseen = statuses.is_claimed(self.status) and not statuses.is_name_taken(self.status)
        return self.observed.previous if unseen and not self.observed.name_taken else ()

    def remove_runs(self, newest: int | None = None) -> tuple[DeleteRun, ...]:
        """Deletions of the runs up to a number, without those that are being deleted."""
        newest = self.run if newest is None else newest
        return tuple(DeleteRun(r.name, r.uid) for r in self.observed.runs if r.number <= newest and not r.deleting)


def plan(observed: Observed, settings: PlanSettings, now: datetime, backend: Backend) -> Plan:
    """The plan for a job as it is seen now (UTC)."""
    ctx = ReconcileContext(observed, settings, now, backend)
    answer = next(answer for each in CHECKS if (answer := each(ctx)) is not None)
    forced, left = dead_nodes.deletions(observed, settings, now)
    answer = replace(answer, actions=(*answer.actions, *forced), requeue_after=_earliest(answer.requeue_after, left))
    if answer.status.completionTime:
        active = active_time.closed(answer.status.active, ctx.time, ctx.time)
        return replace(answer, status=answer.status.model_copy(update={"active": active}))
    left = _deadline(ctx, answer.status)
    return replace(answer, requeue_after=_earliest(answer.requeue_after, left if left and left > 0 else None))


def finished(ctx: ReconcileContext) -> Plan | None:
    """A finished job never creates anything again; its children are deleted when their TTL expires."""
    ended = ctx.status.completionTime
    if not ended:
        return None
    holds = stopping.undeleted(ctx.observed.pods) or (statuses.verdict(ctx.status) and _unfinished(ctx))
    times = [stopping.RELEASE_SECONDS] if holds else []
    ttl = lifetimes.ttl(ctx.job, ctx.status)
    times += [] if ttl is None else [ttl]
    if not times or not any(not r.deleting for r in ctx.observed.runs):
        return Plan((), ctx.status)
    left = (_after(ended, min(times)) - ctx.now).total_seconds()
    return Plan((), ctx.status, requeue_after=left) if left > 0 else Plan(ctx.remove_runs(), ctx.status)


def doomed(ctx: ReconcileContext) -> Plan | None:
    """A recorded verdict is final, whatever the spec or a pod says afterwards."""
    return _end(ctx, ctx.status) if statuses.verdict(ctx.status) else None


def cancelled(ctx: ReconcileContext) -> Plan | None:
    if ctx.job.cancel.value is not True:
        return None
    return _end(ctx, statuses.over(ctx.status, reasons.CANCELLED, now=ctx.time))


def refused(ctx: ReconcileContext) -> Plan | None:
    """Refused before the first run, or not accepted yet. Later runs use what was resolved at acceptance."""
    if ctx.run or ctx.verdict.valid:
        return None
    return Plan((), ctx.admission, requeue_after=NODES_POLL_SECONDS if ctx.observed.nodes else None)


def suspended(ctx: ReconcileContext) -> Plan | None:
    if ctx.job.suspend.value is not True:
        return None
    return _stop(ctx, ctx.status, ctx.now) or Plan((), statuses.suspended(ctx.status, now=ctx.time))


def succeeded(ctx: ReconcileContext) -> Plan | None:
    """Success is the trainer's own report on node 0, whatever the backend says."""
    report = _report(ctx, Exit.OK)
    if report is None:
        return None
    status = statuses.apply_record(report, ctx.status, ctx.time)
    return Plan((), status, record_result=results.record(ctx.job, status))


def already_complete(ctx: ReconcileContext) -> Plan | None:
    """The output of this job already exists; the job that produced it was deleted."""
    if ctx.run or not ctx.observed.claim.annotations:
        return None
    resolved = ctx.status.resolved
    if ctx.verdict.resolution is None or resolved is None:
        return None
    result = results.recorded(ctx.job, ctx.observed.claim.annotations, resolved.digest or "")
    if result is None:
        return None
    return Plan(
        (),
        statuses.already_complete(ctx.status, result, results.already_complete_message(ctx.job), now=ctx.time),
    )


def output_not_shared(ctx: ReconcileContext) -> Plan | None:
    """Several nodes, and a claim that one node can mount: all pods but one would wait for ever."""
    resolution, modes = ctx.verdict.resolution, ctx.observed.claim.access_modes
    if ctx.run or resolution is None or resolution.layout.nodes == 1 or not modes or set(modes) - ONE_NODE:
        return None
    problem = results.not_shared(ctx.job, modes, resolution.layout.nodes)
    verdict = Verdict((problem,), resolution)
    status = statuses.admission(verdict, now=ctx.time, generation=ctx.generation, before=ctx.written)
    return Plan((), status, requeue_after=CLAIM_POLL_SECONDS)


def deadline_exceeded(ctx: ReconcileContext) -> Plan | None:
    left = _deadline(ctx, ctx.status)
    if left is None or left > 0:
        return None
    limit = lifetimes.active_deadline(ctx.job, ctx.status)
    return _end(ctx, statuses.over(ctx.status, reasons.DEADLINE_EXCEEDED, now=ctx.time, limit=limit))


def terminating(ctx: ReconcileContext) -> Plan | None:
    """The previous run's pods must be gone before the next run is created; how they exit no longer matters."""
    if over := ctx.remove_runs(ctx.run if statuses.run_is_over(ctx.status) else ctx.run - 1):
        return Plan(over, ctx.status, requeue_after=POLL_SECONDS)
    if any(r.deleting for r in ctx.observed.runs) or (ctx.pods and not ctx.observed.runs):
        return Plan((), _name_late_pod(ctx, ctx.status), requeue_after=POLL_SECONDS)
    return None


def queued(ctx: ReconcileContext) -> Plan | None:
    """A queue that removes a run's pods will admit it again; that is not a failure."""
    if not any(r.suspended for r in ctx.observed.runs):
        return None
    queue = ctx.observed.queue
    if queue.managed or not ctx.job.queue.value:
        return Plan((), statuses.queued(ctx.status, queue.message, now=ctx.time))
    status = statuses.queue_unmanaged(ctx.status, ctx.job.queue.value, ctx.backend, now=ctx.time)
    return Plan((), status)


def admitted_early(ctx: ReconcileContext) -> Plan | None:
    """Pods of the last admission still end; backends take them for failures of this one. Another run, for free."""
    if not statuses.is_queued(ctx.status) or not any(p.termination_deadline for p in ctx.pods):
        return None
    message = "The queue admitted the job again before its pods had ended; the next run waits for them."
    return _end_or_restart(ctx, retry.Failure(Exit.PEER_LOST, message, free=True))


def failed(ctx: ReconcileContext) -> Plan | None:
    """One failed pod ends the whole gang's run: another run follows, or the job fails."""
    cause = retry.root_cause(ctx.pods)
    if cause is None or cause.exit_code == Exit.PEER_LOST:
        cause = _deleted_pods(ctx) or cause or _pods_gone(ctx)
    if cause is None:
        return None
    if (left := _peer_lost_grace(ctx, cause)) > 0:
        return Plan((), ctx.status, requeue_after=left)
    return _end_or_restart(ctx, cause)


def confined(ctx: ReconcileContext) -> Plan | None:
    """Pods that fit on no node but those that the run avoids: the next run may go anywhere again, for free."""
    left = avoidance.seconds_left(ctx.status, ctx.pods, ctx.now)
    if left is None or left > 0:
        return None
    message = f"No other node can take the pods; the next run no longer avoids {avoidance.sentence(ctx.status)}."
    answer = _end_or_restart(ctx, retry.Failure(Exit.PEER_LOST, message, free=True))
    return replace(answer, status=answer.status.model_copy(update={"avoidedNodes": None}))


def _end_or_restart(ctx: ReconcileContext, cause: retry.Failure) -> Plan:
    restarts, allowed = ctx.status.restarts or 0, ctx.job.lifecycle.max_restarts.value
    if not retry.should_retry(cause, restarts, allowed):
        return _end(ctx, statuses.failing(ctx.status, cause.exit_code, cause.message, now=ctx.time))
    attempt = backoff.counted(ctx.status, cause, retry.saved_step(ctx.pods), allowed)
    if cause.free and (attempt.freeRestarts or 0) > ctx.settings.max_free_restarts:
        message = f"{cause.message} {NO_PROGRESS.format(count=ctx.settings.max_free_restarts)}"
        return _end(ctx, statuses.failing(ctx.status, cause.exit_code, message, now=ctx.time))
    attempt = backoff.scheduled(attempt, ctx.uid, ctx.now, ctx.settings, free=cause.free)
    used = restarts + (not cause.free)
    remedy = reasons.FREE_RESTART if cause.free else exits.meaning(cause.exit_code).remedy
    status = statuses.restarting(ctx.status, used, cause.message, now=ctx.time, remedy=remedy, retry=attempt)
    return Plan(ctx.remove_runs(), avoidance.blaming(status, cause), requeue_after=POLL_SECONDS)


def previous_job(ctx: ReconcileContext) -> Plan | None:
    """The pods of a deleted job of the same name, or of an unseen run, must be gone before a run is created."""
    names_left = ctx.orphans if ctx.run else ctx.observed.previous
    if not names_left:
        return None
    left = stopping.name_list(list(names_left))
    return Plan((), statuses.waiting_for_previous(ctx.status, left, now=ctx.time), requeue_after=POLL_SECONDS)


def backend_missing(ctx: ReconcileContext) -> Plan | None:
    if ctx.observed.backend or ctx.observed.runs:
        return None
    return Plan((), statuses.backend_missing(ctx.status, ctx.backend, now=ctx.time), requeue_after=POLL_SECONDS)


def starting(ctx: ReconcileContext) -> Plan | None:
    """Claim the next run in the status and create it; a claimed run that was never seen is created again."""
    if ctx.observed.runs:
        return None
    if problem := _blocking_problem(ctx):
        return Plan((), statuses.blocked(ctx.status, problem, now=ctx.time))
    if (left := backoff.seconds_left(ctx.status, ctx.now, ctx.settings)) > 0:
        return Plan((), statuses.next_run(ctx.status, now=ctx.time), requeue_after=left)
    number = ctx.run if statuses.is_claimed(ctx.status) else ctx.run + 1
    work = replace(_workload(ctx, number), avoided_nodes=avoidance.names(ctx.status))
    manifest = ctx.backend.render(work, ctx.observed.resource["metadata"].get("namespace"), _owner(ctx))
    previous = names.run_name(ctx.observed.resource["metadata"]["name"], number - 1) if number > 1 else ""
    if number == ctx.run:
        refusal = ctx.observed.refusal
        status = (
            statuses.create_refused(ctx.status, refusal, now=ctx.time, taken=ctx.observed.name_taken)
            if refusal
            else ctx.status
        )
    else:
        status = statuses.claimed(statuses.started(ctx.status, work, now=ctx.time), now=ctx.time)
    return Plan((CreateRun(manifest, previous),), status)


def running(ctx: ReconcileContext) -> Plan:
    """Nothing to do but report progress."""
    status = statuses.running(ctx.status, ctx.run, now=ctx.time)
    status = statuses.pods_ready(status, ctx.pods, ctx.observed.pods_refusal, found_by=_found_by(ctx), now=ctx.time)
    silent = next((r for r in ctx.observed.runs if r.created and not (r.reconciled or ctx.pods)), None)
    left = (_after(silent.created, SILENT_SECONDS) - ctx.now).total_seconds() if silent else None
    if silent and left is not None and left <= 0:
        return Plan((), statuses.backend_silent(status, ctx.backend, silent, now=ctx.time))
    reported = status
    for record in ctx.observed.records:
        reported = statuses.apply_record(record, reported, ctx.time)
    if reported != status:  # with what is written anyway: by itself the time is not worth a write
        status = reported.model_copy(update={"active": active_time.carried(reported.active, ctx.time)})
    return Plan((), status, requeue_after=_earliest(left, avoidance.seconds_left(status, ctx.pods, ctx.now)))


CHECKS: tuple[Callable[[ReconcileContext], Plan | None], ...] = (
    finished, doomed, succeeded, cancelled, refused, already_complete, output_not_shared, suspended,
    deadline_exceeded, terminating, queued, admitted_early, failed, confined, previous_job, backend_missing, starting,
    running,
)  # fmt: skip


def _end(ctx: ReconcileContext, status: Status) -> Plan:
    """Carry out a verdict: its pods end, and then the job is over."""
    verdict = statuses.verdict(status)
    assert verdict is not None, "the verdict stands in the status"
    pods = ctx.observed.pods  # where none has ended, no log is worth keeping, and the backend may make others
    at_once = verdict.reason in AT_ONCE or stopping.active(pods) == pods
    patience = 0.0 if at_once else stopping.RELEASE_SECONDS
    return _stop(ctx, status, _after(verdict.lastTransitionTime, patience), keep=bool(patience)) or Plan(
        (), statuses.ended(status, now=ctx.time)
    )


def _stop(ctx: ReconcileContext, status: Status, release: datetime, *, keep: bool = False) -> Plan | None:
    """Wait for the job's pods, and delete its runs at `release`; None once no pod is left that has not ended.

    keep: not while all of them are being deleted already: that ends none of them earlier, and the logs would go.
    """
    pods = stopping.active(ctx.observed.pods)
    due = release <= ctx.now and not (keep and not stopping.undeleted(pods))
    actions = ctx.remove_runs() if due else ()
    others = (*(f"run {r.name}" for r in ctx.observed.runs), *ctx.orphans)
    if not (pods or actions or ctx.orphans or any(r.deleting for r in ctx.observed.runs)):
        return None
    gpus = 0 if is_cpu(ctx.job) else (status.layout and status.layout.gpusPerNode) or 0
    message = stopping.message(pods, others, gpus, None if due else release)
    status = statuses.stopping(status, message, now=ctx.time)
    return Plan(actions, _name_late_pod(ctx, status), requeue_after=POLL_SECONDS)


def _name_late_pod(ctx: ReconcileContext, status: Status) -> Status:
    """The status with a pod that is past its termination grace period, if there is one, and the remedy."""
    pod = dead_nodes.late(ctx.observed, ctx.now)
    forced = dead_nodes.sentence(pod, ctx.observed, ctx.settings) if pod else ""
    namespace = ctx.observed.resource["metadata"].get("namespace", "")
    return statuses.termination_overdue(status, pod, namespace, forced, now=ctx.time)


def _report(ctx: ReconcileContext, code: int) -> FinalReport | None:
    first = next((p for p in ctx.pods if p.node_rank == 0), None)
    return first.report if first and first.report and first.report.exit_code == code else None


def _deleted_pods(ctx: ReconcileContext) -> retry.Failure | None:
    """The backend replaces a deleted pod, but its peers have lost it: the whole gang restarts."""
    changed = gang.has_changed(ctx.observed.resource.get("status") or {}, ctx.observed.pods)
    if not ctx.observed.runs or not changed:
        return None
    return retry.Failure(Exit.PEER_LOST, "Running pods of the run were deleted or replaced.", free=True)


def _pods_gone(ctx: ReconcileContext) -> retry.Failure | None:
    """The backend says that the run is over, and no pod is left that could say how."""
    run = next((r for r in ctx.observed.runs if r.number == ctx.run and r.over), None)
    if run is None or stopping.active(ctx.pods):
        return None
    return retry.Failure(
        Exit.PEER_LOST, f"Run {run.name} is over, and its pods are gone without a report.", free=True
    )


def _unfinished(ctx: ReconcileContext) -> bool:
    """Whether a run has no pods and may still make some."""
    with_pods = {p.run for p in ctx.observed.pods}
    return any(not (r.over or r.deleting or r.number in with_pods) for r in ctx.observed.runs)


def _peer_lost_grace(ctx: ReconcileContext, cause: retry.Failure) -> float:
    """Seconds in which a lost peer may still report its own failure, while no other cause is known."""
    running = any(p.phase == "Running" for p in ctx.pods)
    reported = [p.report.time for p in ctx.pods if p.exit_code == Exit.PEER_LOST and p.report]
    if cause.exit_code != Exit.PEER_LOST or not running or not reported:
        return 0.0
    return min(PEER_LOST_GRACE, min(reported) + PEER_LOST_GRACE - ctx.now.timestamp())


def _blocking_problem(ctx: ReconcileContext) -> Problem | None:
    """Why an accepted job cannot start its next run: other settings, or an operator that lacks its keys."""
    if not ctx.run:
        return None
    pinned = ctx.written.resolved and ctx.written.resolved.contract
    if pinned and not contract.is_known(pinned):
        what = reasons.NEWER_CONTRACT
        return Problem("status.resolved.contract", what.name, what.message, what.remedy)
    return next((p for p in ctx.verdict.problems if p.reason not in FIXED_AT_ACCEPTANCE), None)


def _found_by(ctx: ReconcileContext) -> str:
    """By which labels the scheduler finds nodes for the job, as a sentence."""
    resolution = ctx.verdict.resolution
    accelerator = resolution and ctx.settings.accelerators.get(resolution.job.gpu_type.value.upper())
    return accelerator.sentence if accelerator else ""


def _workload(ctx: ReconcileContext, number: int) -> Workload:
    """The workload of a run. The first one is resolved; later ones take what was resolved then."""
    if ctx.verdict.resolution is None:
        raise ValueError("an invalid job has no workload")
    work = workload(ctx.verdict.resolution, ctx.settings, number, ctx.uid)
    resolved, layout = ctx.written.resolved, ctx.written.layout
    if not ctx.run or not resolved or not resolved.runConfig or not layout:
        return work
    return replace(
        work,
        config_json=resolved.runConfig,
        contract=contract.from_text(resolved.contract) if resolved.contract else work.contract,
        image=resolved.image or work.image,
        nodes=layout.nodes or work.nodes,
        processes_per_node=layout.gpusPerNode or work.processes_per_node,
    )


def _deadline(ctx: ReconcileContext, status: Status) -> float | None:
    """Seconds until the deadline is over; None if there is none, or while no pod is bound to a node."""
    limit = lifetimes.active_deadline(ctx.job, status)
    return None if limit is None else active_time.seconds_left(status, limit, ctx.time)


def _earliest(one: float | None, other: float | None) -> float | None:
    return min((t for t in (one, other) if t is not None), default=None)


def _after(time: str, seconds: float) -> datetime:
    return datetime.fromisoformat(time) + timedelta(seconds=seconds)


def _owner(ctx: ReconcileContext) -> dict[str, Any] | None:
    metadata = ctx.observed.resource["metadata"]
    if "uid" not in metadata:
        return None
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "name": metadata["name"], "uid": metadata["uid"],
            "controller": True, "blockOwnerDeletion": True}  # fmt: skip
