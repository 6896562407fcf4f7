"""The trainer's records as one line of text each."""

from __future__ import annotations

from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    FinalReport,
    ProgressRecord,
    Record,
    ResumeRecord,
)

HUGE = 1e12


def format_record(record: Record) -> str:
    """The record as one line."""
    match record:
        case DatasetRecord():
            return _dataset(record)
        case ProgressRecord():
            return _progress(record)
        case EvaluationRecord():
            return f"eval at step {record.step}: loss {format_number(record.loss)}{' (best so far)' * record.best}"
        case CheckpointRecord():
            return f"checkpoint at step {record.step} saved in {format_number(record.seconds, '.1f')} s"
        case ResumeRecord():
            return f"resuming from the checkpoint of step {record.step}"
        case FinalReport():
            return f"{record.reason}: {record.message}"


def _dataset(record: DatasetRecord) -> str:
    truncated = f", {record.truncated:,} truncated" if record.truncated else ""
    refused = f", {record.refused:,} refused" if record.refused else ""
    rows = f"{record.split}: {record.used:,} of {record.rows:,} rows{refused}{truncated}"
    return f"{rows}; {record.tokens:,} tokens, {record.target_tokens:,} with loss"


def _progress(record: ProgressRecord) -> str:
    parts = [
        f"step {record.step}/{record.total_steps}",
        f"loss {format_number(record.loss)}",
        f"lr {record.learning_rate:.3g}",
    ]
    if record.tokens_per_second is not None:
        parts.append(f"{format_number(record.tokens_per_second, ',.0f')} tokens/s")
    if record.eta_seconds is not None:
        parts.append(f"{format_duration(record.eta_seconds)} left")
    if record.skipped_steps:
        parts.append(f"{record.skipped_steps} steps skipped (gradients overflowed)")
    return "  ".join(parts)


def format_number(value: float | None, form: str = ".4f") -> str:
    """Four decimals, or four digits and an exponent for huge values; "nan" for null, which was NaN or infinite."""
    return "nan" if value is None else format(value, form if abs(value) < HUGE else ".4g")


def format_duration(seconds: float) -> str:
    """1h02m, 4m10s or 7s."""
    if abs(seconds) >= HUGE:
        return f"{seconds:.4g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
