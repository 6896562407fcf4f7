"""From a job file and overrides to a validated job: the path that validate, render, run and submit share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import click

from finetune_api.validation.problem import Problem
from finetune_plan import resolve
from finetune_plan.network import LOCAL, OF_SETTINGS
from finetune_plan.resolve import Resolution, Verdict
from finetune_plan.settings import PlanSettings

from . import deepspeed_file, overrides
from .job_file import JobFile
from .overrides import Overrides

SETTINGS = PlanSettings()
"""The settings of an operator with default values."""


@dataclass(frozen=True)
class ValidatedJob:
    """A job with overrides, and the verdict of the plan."""

    file: JobFile
    resource: dict[str, Any]
    verdict: Verdict
    left_to_cluster: tuple[Problem, ...] = ()
    """What the verdict leaves out: problems of the network, which only the settings of a cluster decide."""
    dictionary_file: str = ""
    """Of this machine, which holds a part of the job."""

    @property
    def resolution(self) -> Resolution:
        """What the plan decided; only of a job that it does not refuse."""
        assert self.verdict.resolution is not None
        return self.verdict.resolution


def validate(file: JobFile, given: Overrides, *, cluster: bool = True) -> ValidatedJob:
    """Raises InvalidInput only if an override cannot be applied, or a DeepSpeed file cannot be read.

    A local run skips the rules about pods.
    """
    located = replace(file, location=lambda path: overrides.option_at(given, path) or file.location(path))
    asked = overrides.apply(file.resource, given)
    resource, unreadable = deepspeed_file.inlined(asked)
    if unreadable:
        raise located.invalid(unreadable)
    verdict = resolve.validate(resource, SETTINGS, cluster=cluster)
    left = tuple(p for p in verdict.problems if p.reason in OF_SETTINGS)
    decided = replace(verdict, problems=tuple(p for p in verdict.problems if p not in left))
    return ValidatedJob(located, resource, decided, left, deepspeed_file.named(asked))


def accept(file: JobFile, given: Overrides, *, cluster: bool = True) -> ValidatedJob:
    """A job without problems. Raises InvalidInput with all of them."""
    found = validate(file, given, cluster=cluster)
    if found.verdict.resolution is None or not found.verdict.valid:
        raise found.file.invalid(found.verdict.problems)
    return found


def on_one_machine(job: ValidatedJob) -> ValidatedJob:
    """The job with all its nodes here: no network of a cluster, and none of its variables."""
    return replace(job, verdict=replace(job.verdict, resolution=replace(job.resolution, network=LOCAL)))


def cluster_decides(problem: Problem) -> str:
    """A note of what is left to the cluster."""
    return f"The cluster's settings decide: {problem.message} {problem.remedy}"


def print_notes(resolution: Resolution) -> None:
    """Assumptions and ignored keys, on standard error."""
    for note in resolution.notes:
        click.echo(f"{click.style('note:', fg='yellow')} {note.sentence} [{note.reason}]", err=True)
    if resolution.job.informational:
        names = ", ".join(path.removeprefix("spec.") for path in resolution.job.informational)
        click.echo(f"{click.style('note:', fg='yellow')} accepted but without effect: {names}", err=True)


def print_left_to_cluster(job: ValidatedJob) -> None:
    """Likewise what the cluster decides."""
    for problem in job.left_to_cluster:
        click.echo(f"{click.style('note:', fg='yellow')} {cluster_decides(problem)} [{problem.reason}]", err=True)


def timestamp() -> str:
    """The current time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
