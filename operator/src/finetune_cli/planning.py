"""A file and options in, a judged job out: the road that validate, render and run share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from finetune_plan import resolve
from finetune_plan.resolve import Resolution, Verdict
from finetune_plan.settings import PlanSettings

from .changes import Changes, changed
from .reading import Input

SETTINGS = PlanSettings()
"""Those of a cluster where nobody changed a setting."""


@dataclass(frozen=True)
class Judged:
    """A job with the changes of the command line, and what the plan says about it."""

    source: Input
    resource: dict[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Planned:
    """A job that was accepted."""

    source: Input
    resource: dict[str, Any]
    verdict: Verdict
    resolution: Resolution


def judged(source: Input, changes: Changes, *, cluster: bool = True) -> Judged:
    """Raises Refused only if `changes` cannot be made. A local run does not ask the rules about pods."""
    resource = changed(source.resource, changes)
    return Judged(source, resource, resolve.validate(resource, SETTINGS, cluster=cluster))


def planned(source: Input, changes: Changes, *, cluster: bool = True) -> Planned:
    """Raises Refused with everything that is wrong."""
    found = judged(source, changes, cluster=cluster)
    if found.verdict.resolution is None or not found.verdict.valid:
        raise found.source.refused(found.verdict.problems)
    return Planned(found.source, found.resource, found.verdict, found.verdict.resolution)


def say_notes(resolution: Resolution) -> None:
    """What was assumed or ignored, on standard error."""
    for note in resolution.notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note.sentence} [{note.reason}]", err=True)
    if resolution.job.informational:
        names = ", ".join(path.removeprefix("spec.") for path in resolution.job.informational)
        click.echo(f"{click.style('note:', fg='yellow')} accepted, and changing nothing: {names}", err=True)


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
