"""Records in one line each, for people who read logs."""

from __future__ import annotations

from functools import singledispatch

from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    FinalReport,
    ProgressRecord,
    Record,
    ResumeRecord,
)


@singledispatch
def line(record: Record) -> str:
    """The record as one line."""
    raise TypeError(f"no such record: {record!r}")


@line.register
def _(record: DatasetRecord) -> str:
    cut = f", {record.truncated:,} cut" if record.truncated else ""
    refused = f", {record.refused:,} refused" if record.refused else ""
    rows = f"{record.split}: {record.used:,} of {record.rows:,} rows{refused}{cut}"
    return f"{rows}; {record.tokens:,} tokens, {record.target_tokens:,} with loss"


@line.register
def _(record: ProgressRecord) -> str:
    parts = [
        f"step {record.step}/{record.total_steps}",
        f"loss {number(record.loss)}",
        f"lr {record.learning_rate:.3g}",
    ]
    if record.tokens_per_second is not None:
        parts.append(f"{record.tokens_per_second:,.0f} tokens/s")
    if record.eta_seconds is not None:
        parts.append(f"{duration(record.eta_seconds)} left")
    return "  ".join(parts)


@line.register
def _(record: EvaluationRecord) -> str:
    return f"eval at step {record.step}: loss {number(record.loss)}{' (best so far)' * record.best}"


@line.register
def _(record: CheckpointRecord) -> str:
    return f"checkpoint at step {record.step}, in {record.seconds:.1f} s"


@line.register
def _(record: ResumeRecord) -> str:
    return f"continues from the checkpoint of step {record.step}"


@line.register
def _(record: FinalReport) -> str:
    return f"{record.reason}: {record.message}"


def number(value: float | None) -> str:
    """Four decimals, which is what losses differ in; null was NaN or infinity."""
    return "not a number" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """1h02m, 4m10s or 7s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
