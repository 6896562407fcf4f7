"""What a FinetuneJob, as the server tells it, says to people. Pure; all verbs that show jobs read from here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from finetune_api.resource.aliases import MODEL
from finetune_api.validation.predicates import find
from finetune_cli.local import words

from .server import Json

COLOURS = {"Succeeded": "green", "Training": "cyan", "Failed": "red", "Cancelled": "red",
           "Suspended": "yellow"}  # fmt: skip
COLUMNS = ("NAME", "PHASE", "MODEL", "METHOD", "GPUS", "STEP", "LOSS", "ETA", "AGE")
NONE = "-"


def table(jobs: Iterable[Json], now: datetime, *, namespaces: bool = False) -> str:
    """Jobs as lines under a heading."""
    rows = [tuple(COLUMNS), *(_row(job, now) for job in jobs)]
    if namespaces:
        first = ["NAMESPACE", *(job["metadata"]["namespace"] for job in jobs)]
        rows = [(place, *row) for place, row in zip(first, rows, strict=True)]
    return "\n".join(columns(rows, COLOURS))


def columns(rows: Sequence[Sequence[str]], colours: dict[str, str]) -> list[str]:
    """Rows with cells as wide as their column; a cell whose text has a colour gets it."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[-1] = cells[-1].rstrip()
        lines.append("   ".join(click.style(c, fg=colours[c.strip()]) if c.strip() in colours else c for c in cells))
    return lines


def _row(job: Json, now: datetime) -> tuple[str, ...]:
    status = job.get("status") or {}
    progress, done = status.get("progress") or {}, "completionTime" in status
    step, total, eta = progress.get("step"), progress.get("totalSteps"), progress.get("etaSeconds")
    return (
        job["metadata"]["name"],
        phase(job),
        model(job),
        find(status, "resolved.method") or NONE,
        str(find(status, "layout.worldSize") or NONE),
        NONE if step is None else f"{step}/{total}",
        NONE if progress.get("loss") is None else words.number(progress["loss"]),
        NONE if eta is None or done or phase(job) == "Suspended" else words.duration(eta),
        age(job["metadata"]["creationTimestamp"], now),
    )


def phase(job: Json) -> str:
    """The operator's summary; Pending while no operator has looked at the job."""
    word: str = find(job, "status.phase") or "Pending"
    return word


def model(job: Json) -> str:
    return str(next((v for key in MODEL if (v := find(job.get("spec") or {}, key))), NONE))


def age(time: str, now: datetime) -> str:
    """Time since then in its two largest units: 3d4h, 1h02m, 4m10s, 7s."""
    seconds = max(0.0, (now - moment(time)).total_seconds())
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d{rest // 3600}h" if days else words.duration(rest)


def moment(time: str) -> datetime:
    return datetime.fromisoformat(time)


def present() -> datetime:
    return datetime.now(UTC)


def condition(job: Json, kind: str) -> Json | None:
    conditions = find(job, "status.conditions") or ()
    return next((c for c in conditions if c["type"] == kind), None)


def is_true(job: Json, kind: str) -> bool:
    found = condition(job, kind)
    return found is not None and found["status"] == "True"


def ended(job: Json) -> bool:
    """Whether the job is over: it has succeeded, failed or was cancelled. A refused job may still be mended."""
    return "completionTime" in (job.get("status") or {})


def lean(data: Any) -> Any:
    """A copy of an object, or of a list of them, without the bookkeeping of field managers."""
    if isinstance(data, list):
        return [lean(each) for each in data]
    return {**data, "metadata": {k: v for k, v in data["metadata"].items() if k != "managedFields"}}
