"""Views of FinetuneJobs as the server returns them, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import click

from finetune_api.resource.aliases import MODEL
from finetune_api.validation.predicates import find
from finetune_cli.errors import printable
from finetune_cli.local.format_record import format_duration, format_number

from .api_client import Json

COLOURS = {"Succeeded": "green", "Training": "cyan", "Failed": "red", "Cancelled": "red",
           "Suspended": "yellow", "Stopping": "yellow"}  # fmt: skip
COLUMNS = ("NAME", "PHASE", "MODEL", "METHOD", "GPUS", "STEP", "LOSS", "ETA", "AGE")
NONE = "-"
ANSWERS = {"True": "yes", "False": "no", "Unknown": "unknown"}
LABEL_WIDTH = 9


def table(jobs: Iterable[Json], at: datetime, *, namespaces: bool = False) -> str:
    """Jobs as lines below a heading."""
    rows = [tuple(COLUMNS), *(_row(job, at) for job in jobs)]
    if namespaces:
        first = ["NAMESPACE", *(job["metadata"]["namespace"] for job in jobs)]
        rows = [(namespace, *row) for namespace, row in zip(first, rows, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        lines.append("   ".join(click.style(c, fg=COLOURS[c.strip()]) if c.strip() in COLOURS else c for c in cells))
    return "\n".join(lines)


def _row(job: Json, at: datetime) -> tuple[str, ...]:
    status = job.get("status") or {}
    progress, done = status.get("progress") or {}, "completionTime" in status
    step, total, eta = progress.get("step"), progress.get("totalSteps"), progress.get("etaSeconds")
    return (
        job["metadata"]["name"],
        phase(job),
        printable(model(job)),
        find(status, "resolved.method") or NONE,
        str(find(status, "layout.worldSize") or NONE),
        NONE if step is None else f"{step}/{total}",
        NONE if progress.get("loss") is None else format_number(progress["loss"]),
        NONE if eta is None or done or phase(job) in ("Suspended", "Stopping") else format_duration(eta),
        age(job["metadata"]["creationTimestamp"], at),
    )


def describe(job: Json, now: datetime) -> str:
    """The status, most important lines first."""
    head = f"{job['metadata']['name']}: {click.style(phase(job), fg=COLOURS.get(phase(job)), bold=True)}"
    lines = [f"  {label + ':':{LABEL_WIDTH}} {text}" for label, text in _details(job, now)]
    conditions = list(_conditions(job, now))
    return "\n".join([head, *map(printable, [*lines, *(["", "Conditions", *conditions] if conditions else [])])])


def _details(job: Json, now: datetime) -> Iterator[tuple[str, str]]:
    status = job.get("status") or {}
    resolved = status.get("resolved") or {}
    why = f" ({resolved['methodReason']})" if resolved.get("methodReason") else ""
    yield "model", model(job)
    if resolved.get("method"):
        yield "method", f"{resolved['method']} on {resolved.get('engine')}, {resolved.get('precision')}{why}"
    yield from _layout(status)
    yield from _dataset(status)
    yield from _progress(status)
    yield from _result(status)
    if status.get("run"):
        yield "run", f"{status['run']}, {status.get('restarts') or 'no'} restarts after failures{_next_run(status)}"
    yield "time", _time(job, now)
    if status.get("informational"):
        yield "ignored", ", ".join(path.removeprefix("spec.") for path in status["informational"])


def _next_run(status: Json) -> str:
    """Of a job that waits for its next run: when that starts, and what the last one ended for."""
    retry = status.get("retry") or {}
    if not retry.get("nextTime"):
        return ""
    attempt = f"attempt {retry.get('attempts')} after {retry.get('reason')}, {retry.get('allowed')} restarts allowed"
    return f"; the next starts at {retry['nextTime']} ({attempt})"


def _layout(status: Json) -> Iterator[tuple[str, str]]:
    layout = status.get("layout")
    if layout:
        axes = (("data", "dataParallel"), ("tensor", "tensorParallel"), ("pipeline", "pipelineParallel"))
        parallel = ", ".join(f"{name} {layout[key]}" for name, key in axes if layout.get(key, 1) > 1)
        nodes = f"{layout['nodes']} node{'s' * (layout['nodes'] > 1)} x {layout['gpusPerNode']}"
        ranks = f"{layout['worldSize']} rank{'s' * (layout['worldSize'] > 1)}"
        yield "layout", f"{nodes} = {ranks}{f' ({parallel} parallel)' if parallel else ''}"
        network = status.get("network")
        if network and layout["nodes"] > 1:
            yield "network", f"{network.get('profile')} ({network.get('reason')})"


def _dataset(status: Json) -> Iterator[tuple[str, str]]:
    rows = status.get("dataset")
    if rows:
        bad = f", {rows['refused']:,} refused" if rows.get("refused") else ""
        yield "rows", f"{rows['used']:,} of {rows['rows']:,}{bad}; {rows['tokens']:,} tokens"


def _progress(status: Json) -> Iterator[tuple[str, str]]:
    progress = status.get("progress") or {}
    if progress.get("step") is not None:
        yield "step", f"{progress['step']}/{progress['totalSteps']} ({progress['percent']} %)"
        yield "loss", format_number(progress.get("loss"))
    if progress.get("evalLoss") is not None:
        yield "eval", format_number(progress["evalLoss"])
    if progress.get("tokensPerSecond") is not None:
        yield "speed", f"{format_number(progress['tokensPerSecond'], ',.0f')} tokens/s"
    if progress.get("etaSeconds") and "completionTime" not in status:
        yield "left", format_duration(progress["etaSeconds"])
    if progress.get("checkpointStep") is not None:
        yield "saved", f"checkpoint of step {progress['checkpointStep']}"


def _result(status: Json) -> Iterator[tuple[str, str]]:
    result = status.get("result")
    if result:
        metrics = ", ".join(f"{name} {format_number(value)}" for name, value in (result.get("metrics") or {}).items())
        yield "result", f"{result.get('uri') or 'none'}{f' ({metrics})' if metrics else ''}"


def _time(job: Json, now: datetime) -> str:
    status = job.get("status") or {}
    text = f"created {age(job['metadata']['creationTimestamp'], now)} ago"
    if status.get("startTime"):
        text += f", started {age(status['startTime'], now)} ago"
    if status.get("completionTime"):
        text += f", ended {age(status['completionTime'], now)} ago"
    return text


def _conditions(job: Json, now: datetime) -> Iterator[str]:
    found = find(job, "status.conditions") or ()
    width = max((len(c["type"]) for c in found), default=0)
    for each in found:
        since = age(each["lastTransitionTime"], now)
        yield f"  {each['type']:{width}} {ANSWERS[each['status']]:3} since {since}: {each['reason']}"
        yield from (f"  {'':{width}}     {line}" for line in each["message"].splitlines())


def phase(job: Json) -> str:
    """The phase; Pending until an operator has reconciled the job."""
    return str(find(job, "status.phase") or "Pending")


def model(job: Json) -> str:
    """The base model, under whichever key it is named."""
    return str(next((v for key in MODEL if (v := find(job.get("spec") or {}, key))), NONE))


def age(time: str, at: datetime) -> str:
    """Time from `time` to `at` in its two largest units: 3d4h, 1h02m, 4m10s, 7s."""
    seconds = max(0.0, (at - parse_time(time)).total_seconds())
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d{rest // 3600}h" if days else format_duration(rest)


def parse_time(time: str) -> datetime:
    return datetime.fromisoformat(time)


def now() -> datetime:
    return datetime.now(UTC)


def condition(job: Json, kind: str) -> Json | None:
    conditions = find(job, "status.conditions") or ()
    return next((c for c in conditions if c["type"] == kind), None)


def condition_is_true(job: Json, kind: str) -> bool:
    found = condition(job, kind)
    return found is not None and found["status"] == "True"


def has_ended(job: Json) -> bool:
    """Whether the job has succeeded, failed or been cancelled. A refused job can still be corrected."""
    return "completionTime" in (job.get("status") or {})


def without_managed_fields(data: Any) -> Any:
    """A copy of an object, or of a list of objects, without metadata.managedFields."""
    if isinstance(data, list):
        return [without_managed_fields(each) for each in data]
    return {**data, "metadata": {k: v for k, v in data["metadata"].items() if k != "managedFields"}}
