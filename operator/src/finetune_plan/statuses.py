"""Builds the status: from a verdict when the job is accepted or refused, from records while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import singledispatch
from typing import Any

from finetune_api.resource import conditions as c
from finetune_api.resource import reasons as r
from finetune_api.resource.reasons import Reason
from finetune_api.resource.status import (
    Condition,
    ConditionStatus,
    DatasetStatus,
    LayoutStatus,
    NetworkStatus,
    Phase,
    ProgressStatus,
    Resolved,
    ResultStatus,
    RetryStatus,
    Status,
    condition,
    set_condition,
)
from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    FinalReport,
    ProgressRecord,
    Record,
    ResumeRecord,
)
from finetune_api.validation.problem import Problem

from . import avoidance, contract, gang
from .backends.protocol import Backend
from .model import ObservedPod, ObservedRun
from .mounts import uri_of
from .network import ResolvedNetwork
from .pod_reasons import REFUSED, WAITING, match_reason
from .resolve import Resolution, Verdict
from .runconfig import digest
from .workload import Workload

MESSAGE_LENGTH = 4096


def admission(verdict: Verdict, *, now: str, generation: int | None = None, before: Status | None = None) -> Status:
    """The status of a job that has no run yet; `before` is what was written last."""
    status = _resolution_status(verdict.resolution) if verdict.resolution else Status()
    status = _with(status, observedGeneration=generation, conditions=before.conditions if before else None)
    if verdict.problems:
        message = "\n".join(str(p) for p in verdict.problems)[:MESSAGE_LENGTH]
        waits = verdict.waits_for_nodes
        status = _set(status, c.ACCEPTED, None if waits else False, verdict.problems[0].reason, message, now)
        status = _set(status, c.READY, False, *_of(r.NOT_FINISHED if waits else r.NOT_ACCEPTED), now)
        return _with(status, phase=Phase.QUEUED if waits else Phase.FAILED)
    notes = verdict.resolution.notes if verdict.resolution else ()
    message = "\n".join(n.sentence for n in notes)[:MESSAGE_LENGTH] or r.ACCEPTED.text()
    status = _set(status, c.ACCEPTED, True, notes[0].reason if notes else r.ACCEPTED.name, message, now)
    return _with(_set(status, c.READY, False, *_of(r.NOT_FINISHED), now), phase=Phase.QUEUED)


def started(status: Status, work: Workload, *, now: str) -> Status:
    """A run of the job exists."""
    pinned = {"image": work.image, "runConfig": work.config_json, "contract": contract.to_text(work.contract)}
    resolved = (status.resolved or Resolved()).model_copy(update=pinned)
    status = _clear_suspended(status, now)
    if _find(status, c.TRAINING):
        status = _set(status, c.TRAINING, False, *_of(r.STARTING), now)
    retry = status.retry and status.retry.model_copy(update={"nextTime": None})
    status = _with(status, run=work.run, podsDigest=None, resolved=resolved, retry=retry)
    return _with(status, phase=Phase.STARTING, startTime=status.startTime or now)


def claimed(status: Status, *, now: str) -> Status:
    """The status takes the number of a run before the run is created, so that a crash in between costs none."""
    return _set(status, c.PODS_READY, False, *_of(r.CREATING, run=status.run), now)


def running(status: Status, run: int, *, now: str) -> Status:
    """The run exists, even if the status write that recorded it was lost."""
    status = _clear_suspended(status, now)
    return _with(status, run=run, startTime=status.startTime or now, phase=_phase_of_running(status.phase))


def create_refused(status: Status, message: str, *, now: str, taken: bool = False) -> Status:
    """The claimed run could not be created; it is tried again."""
    reason, message = _of(r.NAME_TAKEN if taken else r.CREATE_REFUSED, message=_sentence(message))
    return _set(status, c.PODS_READY, False, reason, message, now)


def is_claimed(status: Status) -> bool:
    """Whether the run that the status names was never observed."""
    found = _find(status, c.PODS_READY)
    return status.run is not None and found is not None and found.reason in _CLAIMED


def is_name_taken(status: Status) -> bool:
    """Whether a foreign object had the name of the run."""
    found = _find(status, c.PODS_READY)
    return found is not None and found.reason == r.NAME_TAKEN.name


_CLAIMED = {r.CREATING.name, r.CREATE_REFUSED.name, r.NAME_TAKEN.name, r.PREVIOUS_JOB.name}


def is_queued(status: Status) -> bool:
    """Whether a queue held the run back when it was observed last."""
    found = _find(status, c.PODS_READY)
    return found is not None and found.reason in (r.QUEUED.name, r.QUEUE_UNMANAGED.name)


def run_is_over(status: Status) -> bool:
    """Whether the current run is over, failed and counted or suspended; it only has to go."""
    training, suspended = _find(status, c.TRAINING), _find(status, c.SUSPENDED)
    restarting = training is not None and training.reason == r.RESTARTING.name
    counted = status.retry is not None and status.run is not None and status.retry.run == status.run
    return restarting or counted or (suspended is not None and suspended.status is ConditionStatus.TRUE)


@singledispatch
def apply_record(record: Record, status: Status, now: str) -> Status:
    """The status after one more record of the trainer."""
    raise TypeError(f"no such record: {record!r}")


@apply_record.register
def _(record: DatasetRecord, status: Status, now: str) -> Status:
    if record.split != "train":
        return status
    masked = 1 - record.target_tokens / record.tokens if record.tokens else None
    dataset = DatasetStatus(rows=record.rows, used=record.used, refused=record.refused, tokens=record.tokens,
                         maskedFraction=None if masked is None else round(masked, 4))  # fmt: skip
    status = _with(status, dataset=dataset, phase=Phase.PREPARING)
    return _set(status, c.DATA_READY, True, *_of(r.READ, used=record.used, rows=record.rows), now)


@apply_record.register
def _(record: ProgressRecord, status: Status, now: str) -> Status:
    progress = _progress(status).model_copy(update={
        "step": record.step, "totalSteps": record.total_steps, "epoch": round(record.epoch, 3),
        "percent": 100 * record.step // max(1, record.total_steps), "loss": _rounded(record.loss),
        "learningRate": record.learning_rate, "gradNorm": record.grad_norm,
        "tokensPerSecond": record.tokens_per_second,
        "etaSeconds": None if record.eta_seconds is None else round(record.eta_seconds),
    })  # fmt: skip
    status = _with(status, progress=progress, phase=Phase.TRAINING)
    return _set(status, c.TRAINING, True, *_of(r.STEPPING), now)


def _rounded(loss: float | None) -> float | None:
    """For the eyes of people, in a column of `kubectl get`; the result's metrics keep every digit."""
    return None if loss is None else round(loss, 6)


@apply_record.register
def _(record: EvaluationRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"evalLoss": _rounded(record.loss)}))


@apply_record.register
def _(record: CheckpointRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"checkpointStep": record.step}))


@apply_record.register
def _(record: ResumeRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"checkpointStep": record.step}))


@apply_record.register
def _(record: FinalReport, status: Status, now: str) -> Status:
    status = _clear_running(status, record.reason, now)
    if record.exit_code == Exit.OK:
        status = _with(status, progress=_final_progress(status, record))
        metrics = {k: v for k, v in record.metrics.items() if v is not None}
        uri = record.result and uri_of(record.result)
        result = ResultStatus(uri=uri, digest=record.digest, metrics=metrics, best=record.best_step)
        return _succeeded(status, result, "Succeeded", record.message, now)
    if record.exit_code == Exit.STOPPED:
        return _with(_set(status, c.SUSPENDED, True, record.reason, record.message, now), phase=Phase.SUSPENDED)
    return failed(status, record.exit_code, record.message, now=now)


def _final_progress(status: Status, record: FinalReport) -> ProgressStatus:
    """The last step, from the report: a pod may end before its last progress records are read."""
    last: dict[str, float | None] = {"step": record.step, "percent": 100, "etaSeconds": 0}
    if (loss := record.metrics.get("train.loss")) is not None:
        last["loss"] = _rounded(loss)
    return _progress(status).model_copy(update=last)


def already_complete(status: Status, result: ResultStatus, message: str, *, now: str) -> Status:
    """The result of this very job was there before it."""
    return _succeeded(status, result, r.ALREADY_COMPLETE.name, message, now)


def failed(status: Status, exit_code: int, message: str, *, now: str) -> Status:
    """The job has failed permanently, and nothing of it is left."""
    return ended(failing(status, exit_code, message, now=now), now=now)


def failing(status: Status, exit_code: int, message: str, *, now: str) -> Status:
    """The verdict of a permanent failure."""
    what = exits.meaning(exit_code)
    text = f"{_sentence(message or what.sentence)} {what.remedy}".strip()[:MESSAGE_LENGTH]
    return _set(status, c.FAILURE_TARGET, True, what.reason, text, now)


def over(status: Status, why: Reason, *, now: str, **values: object) -> Status:
    """A verdict that is not the trainer's."""
    return _set(status, c.FAILURE_TARGET, True, *_of(why, **values), now)


def verdict(status: Status) -> Condition | None:
    """Why the job is going to be Failed or Cancelled; None if it is not."""
    return _find(status, c.FAILURE_TARGET)


def stopping(status: Status, message: str, *, now: str) -> Status:
    """Pods have to end before the job is what its verdict or its spec says; the message is about them."""
    found = verdict(status)
    status = _clear_running(status, found.reason if found else r.SUSPENDED.name, now)
    status = _set(status, c.PODS_READY, False, r.STOPPING.name, message[:MESSAGE_LENGTH], now)
    return _with(status, phase=Phase.STOPPING)


def ended(status: Status, *, now: str) -> Status:
    """The job is over, as its verdict says."""
    found = verdict(status)
    assert found is not None, "a verdict is recorded before the job ends"
    status = _clear_running(status, found.reason, now)
    status = _set(status, c.FAILED, True, found.reason, found.message, now)
    status = _set(status, c.READY, False, found.reason, found.message, now)
    phase = Phase.CANCELLED if found.reason == r.CANCELLED.name else Phase.FAILED
    return _with(status, phase=phase, completionTime=now)


def suspended(status: Status, *, now: str) -> Status:
    status = _clear_running(status, r.SUSPENDED.name, now)
    return _with(_set(status, c.SUSPENDED, True, *_of(r.SUSPENDED), now), phase=Phase.SUSPENDED)


def queued(status: Status, message: str, *, now: str) -> Status:
    """A queue holds the run back, or has taken its pods. `message` is the queue's own."""
    text = f"{r.QUEUED.text()} {message and f'Kueue: {message}'}".strip()[:MESSAGE_LENGTH]
    status = _clear_running(status, r.QUEUED.name, now)
    return _with(_set(status, c.PODS_READY, False, r.QUEUED.name, text, now), phase=Phase.QUEUED)


def queue_unmanaged(status: Status, queue: str, backend: Backend, *, now: str) -> Status:
    """The run waits for a queue, and nothing manages it."""
    status = _clear_running(status, r.QUEUE_UNMANAGED.name, now)
    reason, message = _of(r.QUEUE_UNMANAGED, queue=queue, kind=backend.kind)
    return _with(_set(status, c.PODS_READY, False, reason, message, now), phase=Phase.QUEUED)


def backend_missing(status: Status, backend: Backend, *, now: str) -> Status:
    message = r.BACKEND_MISSING.text(kind=backend.kind, install=backend.install)
    reason = (r.CREATE_REFUSED if is_claimed(status) else r.BACKEND_MISSING).name
    return _with(_set(status, c.PODS_READY, False, reason, message, now), phase=Phase.QUEUED)


def blocked(status: Status, problem: Problem, *, now: str) -> Status:
    """The next run of an accepted job cannot be made as this cluster is set up now."""
    return _with(
        _set(status, c.PODS_READY, False, problem.reason, str(problem)[:MESSAGE_LENGTH], now), phase=Phase.QUEUED
    )


def restarting(
    status: Status, restarts: int, message: str, *, now: str, remedy: str, retry: RetryStatus | None = None
) -> Status:
    """The run has failed and another one follows; `retry` says when, if it has to wait."""
    status = _clear_running(status, r.RESTARTING.name, now)
    status = _set(status, c.TRAINING, False, *_of(r.RESTARTING, message=_sentence(message), remedy=remedy), now)
    return next_run(_with(status, restarts=restarts, retry=retry or status.retry, phase=Phase.STARTING), now=now)


def next_run(status: Status, *, now: str) -> Status:
    """When the next run starts, if it has to wait."""
    retry = status.retry
    if not retry or not retry.nextTime:
        return status
    time = f"{datetime.fromisoformat(retry.nextTime):%H:%M:%S} UTC"
    message = r.NEXT_RUN.text(run=(status.run or 0) + 1, time=time, attempts=retry.attempts, reason=retry.reason,
                              used=status.restarts or 0, allowed=retry.allowed)  # fmt: skip
    return _set(status, c.PODS_READY, False, r.RESTARTING.name, message, now)


def waiting_for_previous(status: Status, left: str, *, now: str) -> Status:
    """A deleted job of the same name may still write to the output."""
    return _with(_set(status, c.PODS_READY, False, *_of(r.PREVIOUS_JOB, left=left), now), phase=Phase.QUEUED)


def backend_silent(status: Status, backend: Backend, run: ObservedRun, *, now: str) -> Status:
    """The backend's controller has not reconciled a run that exists."""
    values = {"controller": backend.controller, "inspect": backend.inspect, "run": run.name, "created": run.created}
    return _set(status, c.PODS_READY, False, *_of(r.BACKEND_SILENT, **values), now)


def termination_overdue(status: Status, pod: ObservedPod | None, namespace: str, forced: str, *, now: str) -> Status:
    """A pod of the run before, if one is given, is still there after its time. `forced`: when it goes by force."""
    if not pod or is_claimed(status):
        return status
    values = {"pod": pod.name, "node": pod.node, "namespace": namespace, "forced": forced and f"{forced} "}
    return _set(status, c.PODS_READY, False, *_of(r.POD_OVERDUE, **values), now)


def pods_ready(
    status: Status, pods: tuple[ObservedPod, ...], refusal: str = "", *, found_by: str = "", now: str
) -> Status:
    """How many pods of the run are running, and what keeps the others. The backend reports too little.

    found_by: by which labels nodes with the GPUs of the job are found, as a sentence.
    """
    wanted = (status.layout.nodes if status.layout else None) or 1
    ready = sum(p.phase == "Running" for p in pods)
    if ready == wanted:
        status = _with(status, podsDigest=status.podsDigest or gang.digest(pods))
        return _set(status, c.PODS_READY, True, *_of(r.RUNNING, ready=ready, wanted=wanted), now)
    reason, text = _missing_pod(pods, refusal if len(pods) < wanted else "")
    if reason is r.UNSCHEDULABLE and status.avoidedNodes:
        text += f" The run avoids {avoidance.sentence(status)}."
    if reason is r.UNSCHEDULABLE and found_by:
        text += f" {found_by}"
    message = f"{r.WAITING.text(ready=ready, wanted=wanted)} {text}".strip()[:MESSAGE_LENGTH]
    return _set(status, c.PODS_READY, False, reason.name, message, now)


def _missing_pod(pods: tuple[ObservedPod, ...], refusal: str) -> tuple[Reason, str]:
    """Why one pod does not exist or does not run, with the remedy."""
    if refusal:
        reason = match_reason(REFUSED, refusal)
        return reason, reason.text(message=_sentence(refusal))
    waiting = next((p for p in pods if p.waiting), None)
    if waiting is None:
        return r.WAITING, ""
    reason, message = (
        match_reason(WAITING, waiting.waiting),
        f"Pod {waiting.name} is waiting: {_sentence(waiting.waiting)}",
    )
    return reason, message if reason is r.WAITING else reason.text(message=message)


def internal_error(status: Mapping[str, Any], error: str, *, now: str, generation: int | None) -> dict[str, Any]:
    """The status, as JSON, of a job on which the operator failed. Nothing else changes: the rest may be the cause."""
    reason, message = _of(r.INTERNAL_ERROR, error=error)
    conditions = status.get("conditions") or ()
    ready = next((each for each in conditions if each["type"] == c.READY), None)
    if ready and (ready["reason"], ready["message"]) == (reason, message):
        return dict(status)
    new = condition(c.READY, False, reason, message, now).model_copy(update={"observedGeneration": generation})
    others = [each for each in conditions if each["type"] != c.READY]
    return {
        "phase": Phase.QUEUED.value,
        **status,
        "conditions": [*others, new.model_dump(mode="json", exclude_none=True)],
    }


def recovered(status: Status, *, now: str) -> Status:
    """The status of a job that can be planned again."""
    ready = _find(status, c.READY)
    if ready is None or ready.reason != r.INTERNAL_ERROR.name or status.completionTime:
        return status
    return _set(status, c.READY, False, *_of(r.NOT_FINISHED), now)


def _succeeded(status: Status, result: ResultStatus, reason: str, message: str, now: str) -> Status:
    status = _set(status, c.COMPLETE, True, reason, message, now)
    status = _set(status, c.READY, True, reason, message, now)
    return _with(status, result=result, phase=Phase.SUCCEEDED, completionTime=now)


def _clear_running(status: Status, reason: str, now: str) -> Status:
    """What is known of a running run, turned off with it, and no next one announced."""
    if status.retry:
        status = _with(status, retry=status.retry.model_copy(update={"nextTime": None}))
    for kind, off in ((c.PODS_READY, r.NO_PODS), (c.TRAINING, r.NOT_TRAINING)):
        if _find(status, kind):
            status = _set(status, kind, False, reason, off.text(), now)
    return _with(status, podsDigest=None)


def _resolution_status(job: Resolution) -> Status:
    layout = job.layout
    rows = job.batch.per_device * job.batch.accumulation * layout.data_parallel
    return Status(
        resolved=Resolved(method=job.method, methodReason=job.method_reason, engine=job.engine,
                          precision=job.precision, rowsPerStep=rows, network=job.network.name or None,
                          digest=digest(job.run_config)),
        layout=LayoutStatus(nodes=layout.nodes, gpusPerNode=layout.gpus_per_node, worldSize=layout.world_size,
                      dataParallel=layout.data_parallel, tensorParallel=layout.tensor_parallel,
                      pipelineParallel=layout.pipeline_parallel,
                      reasons=(*layout.reasons, job.engine_reason)),
        network=_network_status(job.network),
        informational=job.job.informational or None,
    )  # fmt: skip


def _network_status(network: ResolvedNetwork) -> NetworkStatus | None:
    return NetworkStatus(profile=network.name, reason=network.reason) if network.name else None


def _clear_suspended(status: Status, now: str) -> Status:
    if not _find(status, c.SUSPENDED):
        return status
    return _set(status, c.SUSPENDED, False, *_of(r.RESUMED), now)


def _phase_of_running(phase: Phase | None) -> Phase:
    return Phase.STARTING if phase in (None, Phase.QUEUED, Phase.SUSPENDED, Phase.STOPPING) else phase


def _sentence(text: str) -> str:
    """With the full stop that others leave out, since a remedy follows."""
    return f"{text.rstrip('.')}."


def _of(reason: Reason, **values: object) -> tuple[str, str]:
    """The reason and its message, as a condition has them."""
    return reason.name, reason.text(**values)[:MESSAGE_LENGTH]


def _find(status: Status, kind: str) -> Condition | None:
    return next((x for x in status.conditions or () if x.type == kind), None)


def _progress(status: Status) -> ProgressStatus:
    return status.progress or ProgressStatus()


def _with(status: Status, **changes: Any) -> Status:
    return status.model_copy(update=changes)


def _set(status: Status, kind: str, value: bool | None, reason: str, message: str, now: str) -> Status:
    new = condition(kind, value, reason, message, now)
    new = new.model_copy(update={"observedGeneration": status.observedGeneration})
    return _with(status, conditions=set_condition(status.conditions or (), new))
