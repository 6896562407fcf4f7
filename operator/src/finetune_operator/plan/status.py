"""What the status says: from a verdict when the job is accepted or refused, from records while it runs."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from finetune_api import conditions as c
from finetune_api import exits
from finetune_api.exits import Exit
from finetune_api.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    FinalReport,
    ProgressRecord,
    Record,
    ResumeRecord,
)  # fmt: skip
from finetune_api.status import (
    DatasetStatus,
    Layout,
    NetworkStatus,
    Phase,
    ProgressStatus,
    Resolved,
    ResultStatus,
    Status,
)  # fmt: skip

from .model import PodSeen
from .resolve import Resolution
from .validate import Verdict
from .workload import Workload

MESSAGE_LENGTH = 4096


def judged(verdict: Verdict, *, now: str, generation: int | None = None) -> Status:
    """The status of a job that was looked at for the first time."""
    status = _described(verdict.resolution) if verdict.resolution else Status()
    status = _with(status, observedGeneration=generation)
    if verdict.problems:
        message = "\n".join(str(p) for p in verdict.problems)[:MESSAGE_LENGTH]
        status = _set(status, c.ACCEPTED, False, verdict.problems[0].reason, message, now)
        status = _set(status, c.READY, False, "NotAccepted", "The job is refused; see Accepted.", now)
        return _with(status, phase=Phase.FAILED)
    notes = verdict.resolution.notes if verdict.resolution else ()
    message = "\n".join(n.sentence for n in notes)[:MESSAGE_LENGTH] or "The job makes sense."
    status = _set(status, c.ACCEPTED, True, notes[0].reason if notes else "Accepted", message, now)
    return _with(_set(status, c.READY, False, "NotFinished", "The job has not finished.", now), phase=Phase.QUEUED)


def started(status: Status, work: Workload, *, now: str) -> Status:
    """A run of the job exists."""
    resolved = (status.resolved or Resolved()).model_copy(update={"image": work.image})
    if any(x.type == c.SUSPENDED for x in status.conditions or ()):
        status = _set(status, c.SUSPENDED, False, "Resumed", "The job goes on from its last checkpoint.", now)
    return _with(status, run=work.run, phase=Phase.STARTING, resolved=resolved, startTime=status.startTime or now)


@singledispatch
def fold(record: Record, status: Status, now: str) -> Status:
    """The status after one more record of the trainer."""
    raise TypeError(f"no such record: {record!r}")


@fold.register
def _(record: DatasetRecord, status: Status, now: str) -> Status:
    if record.split != "train":
        return status
    masked = 1 - record.target_tokens / record.tokens if record.tokens else None
    seen = DatasetStatus(rows=record.rows, used=record.used, refused=record.refused, tokens=record.tokens,
                         maskedFraction=None if masked is None else round(masked, 4))  # fmt: skip
    sentence = f"{record.used} of {record.rows} rows are trained on."
    return _set(_with(status, dataset=seen, phase=Phase.PREPARING), c.DATA_READY, True, "Read", sentence, now)


@fold.register
def _(record: ProgressRecord, status: Status, now: str) -> Status:
    progress = _progress(status).model_copy(update={
        "step": record.step, "totalSteps": record.total_steps, "epoch": round(record.epoch, 3),
        "percent": 100 * record.step // max(1, record.total_steps), "loss": record.loss,
        "learningRate": record.learning_rate, "gradNorm": record.grad_norm,
        "tokensPerSecond": record.tokens_per_second,
        "etaSeconds": None if record.eta_seconds is None else round(record.eta_seconds),
    })  # fmt: skip
    status = _with(status, progress=progress, phase=Phase.TRAINING)
    return _set(status, c.TRAINING, True, "Stepping", "Optimizer steps are being made.", now)


@fold.register
def _(record: EvaluationRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"evalLoss": record.loss}))


@fold.register
def _(record: CheckpointRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"checkpointStep": record.step}))


@fold.register
def _(record: ResumeRecord, status: Status, now: str) -> Status:
    return _with(status, progress=_progress(status).model_copy(update={"checkpointStep": record.step}))


@fold.register
def _(record: FinalReport, status: Status, now: str) -> Status:
    status = _set(status, c.TRAINING, False, record.reason, "No optimizer steps are being made.", now)
    if record.exit_code == Exit.OK:
        metrics = {k: v for k, v in record.metrics.items() if v is not None}
        result = ResultStatus(uri=record.result, digest=record.digest, metrics=metrics, best=record.best_step)
        status = _set(status, c.COMPLETE, True, "Succeeded", record.message, now)
        status = _set(status, c.READY, True, "Succeeded", record.message, now)
        return _with(status, result=result, phase=Phase.SUCCEEDED, completionTime=now)
    if record.exit_code == Exit.STOPPED:
        return _with(_set(status, c.SUSPENDED, True, record.reason, record.message, now), phase=Phase.SUSPENDED)
    return failed(status, record.exit_code, record.message, now=now)


def failed(status: Status, exit_code: int, message: str, *, now: str) -> Status:
    """The job has failed for good."""
    what = exits.meaning(exit_code)
    text = f"{message or what.sentence} {what.remedy}".strip()[:MESSAGE_LENGTH]
    status = _set(status, c.FAILED, True, what.reason, text, now)
    status = _set(status, c.READY, False, what.reason, text, now)
    return _with(status, phase=Phase.FAILED, completionTime=now)


def ended(status: Status, phase: Phase, reason: str, message: str, *, now: str) -> Status:
    """The job is over for a reason that is not the trainer's."""
    status = _set(status, c.FAILED, True, reason, message, now)
    status = _set(status, c.READY, False, reason, message, now)
    return _with(status, phase=phase, completionTime=now)


def suspended(status: Status, message: str, *, now: str) -> Status:
    return _with(_set(status, c.SUSPENDED, True, "Suspended", message, now), phase=Phase.SUSPENDED)


def backend_missing(status: Status, *, now: str) -> Status:
    message = "This cluster has no PyTorchJob resource. Install the Training Operator 1.9; the job starts by itself."
    return _with(_set(status, c.PODS_READY, False, "BackendMissing", message, now), phase=Phase.QUEUED)


def restarting(status: Status, restarts: int, message: str, *, now: str) -> Status:
    """The run has failed and another one follows."""
    status = _set(status, c.TRAINING, False, "Restarting", message, now)
    return _with(status, restarts=restarts, phase=Phase.STARTING)


def pods_seen(status: Status, pods: tuple[PodSeen, ...], *, now: str) -> Status:
    """How many pods of the run are running; the backend's own word counts the master only."""
    wanted = (status.layout.nodes if status.layout else None) or 1
    ready = sum(p.phase == "Running" for p in pods)
    message = f"{ready} of {wanted} pods are running."
    return _set(status, c.PODS_READY, ready == wanted, "Running" if ready == wanted else "Waiting", message, now)


def _described(resolution: Resolution) -> Status:
    config, mesh = resolution.run_config, resolution.run_config.mesh
    rows = config.batch.per_device * config.batch.accumulation * mesh.data_parallel
    return Status(
        resolved=Resolved(method=config.method, methodReason=resolution.method_reason, engine=config.engine,
                          precision=config.precision, rowsPerStep=rows, digest=resolution.digest),
        layout=Layout(nodes=mesh.nodes, gpusPerNode=mesh.processes_per_node, worldSize=mesh.world_size,
                      dataParallel=mesh.data_parallel, tensorParallel=mesh.tensor_parallel,
                      pipelineParallel=mesh.pipeline_parallel,
                      reasons=(*resolution.layout_reasons, resolution.engine_reason)),
        network=NetworkStatus(profile="tcp", reason="No faster network is configured for this gpu_type."),
        informational=resolution.informational or None,
    )  # fmt: skip


def _progress(status: Status) -> ProgressStatus:
    return status.progress or ProgressStatus()


def _with(status: Status, **changes: Any) -> Status:
    return status.model_copy(update=changes)


def _set(status: Status, kind: str, value: bool, reason: str, message: str, now: str) -> Status:
    new = c.condition(kind, value, reason, message, now)
    new = new.model_copy(update={"observedGeneration": status.observedGeneration})
    return _with(status, conditions=c.set_condition(status.conditions or (), new))
