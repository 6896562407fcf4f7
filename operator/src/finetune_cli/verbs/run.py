"""`finetune run`: the plan of a cluster, executed by local processes."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.validation.problem import Problem
from finetune_cli import exit_codes, job_file, local_files, overrides, planning, printing
from finetune_cli.errors import format_problem
from finetune_cli.job_file import JobFile
from finetune_cli.local import display, output_folder, summary
from finetune_cli.local.execute import FinishedRun, execute
from finetune_cli.local.recorder import previous_run
from finetune_cli.overrides import Overrides
from finetune_cli.planning import ValidatedJob
from finetune_cli.verbs.render import MANIFEST, render
from finetune_plan import statuses
from finetune_plan.runconfig import run_config
from finetune_plan.workload import workload


@click.command()
@click.argument("file")
@overrides.options
@click.option("--dry-run", is_flag=True, help="Print the manifest that a cluster would run, and do nothing else.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@printing.option(help="Print the final status for programs.")
def command(file: str, dry_run: bool, quiet: bool, form: str | None, **options: Any) -> None:
    """Finetune on this machine, as the job in FILE ("-" is standard input) describes.

    Each node of the job is a process that starts its own ranks, with the command and environment of its pod on a
    cluster. The result, checkpoints, logs and status are written to --output, else to the job's output.uri, else to
    <name>-output. Ctrl-C saves a checkpoint and exits with 75; the same command then resumes. Exit code 1 if the run
    failed, 2 if the input is wrong.
    """
    source, given = job_file.read(file), Overrides(**options)
    if dry_run:
        printing.document(render(planning.accept(source, given, cluster=False), MANIFEST), form or "yaml")
        return
    job = _accept(source, given)
    if not quiet:
        planning.print_notes(job.resolution)
    finished = _run(job, quiet=quiet)
    if form:
        printing.document(finished.status.model_dump(mode="json", exclude_none=True), form)
    sys.exit(_summarise(finished, job, quiet=quiet or bool(form)))


def _accept(source: JobFile, given: Overrides) -> ValidatedJob:
    """The job with a local output folder, its files checked. Raises InvalidInput; nothing is written."""
    accepted = planning.accept(source, given, cluster=False)
    if not accepted.resolution.job.output.value:
        given = replace(given, output=f"{accepted.resolution.job.name}-output")
        accepted = planning.accept(source, given, cluster=False)
    job, data = accepted.resolution.job, accepted.resolution.run_config.data
    problems = [
        *local_files.device_problems(job),
        *local_files.cluster_only_problems(job),
        *local_files.data_problems(job, data),
        *local_files.model_problems(job),
        *local_files.adapter_problems(job),
        *output_folder.problems(job, Path(accepted.resolution.run_config.output)),
    ]
    if problems:
        raise accepted.file.invalid(problems)
    return accepted


def _run(job: ValidatedJob, *, quiet: bool) -> FinishedRun:
    output = Path(job.resolution.run_config.output)
    try:
        with output_folder.locked(output) as lock:
            local = planning.on_one_machine(job)
            work = workload(local.resolution, planning.SETTINGS, previous_run(output) + 1)
            now = planning.timestamp()
            first = statuses.started(statuses.admission(local.verdict, now=now), work, now=now)
            return execute(work, output, first, display.choose(quiet=quiet), lock)
    except OSError as error:  # logs and status could not be written: most likely the disk is full
        meaning = MEANINGS[Exit.STORAGE_FAILED]
        message = f"{meaning.sentence} ({error.filename or output}: {error.strerror})"
        click.echo(format_problem(Problem("spec.output.uri", meaning.reason, message, meaning.remedy)), err=True)
        sys.exit(exit_codes.FAILED)


def _summarise(finished: FinishedRun, job: ValidatedJob, *, quiet: bool) -> int:
    """Print the summary; return the exit code."""
    outcome = finished.outcome
    if outcome.code == Exit.OK:
        if not quiet:
            output = Path(run_config(job.resolution).output)
            merged = job.resolution.job.merge.value
            click.echo(summary.succeeded(outcome, summary.records(output), finished.seconds, merged=merged))
        return exit_codes.OK
    if outcome.code == Exit.STOPPED:
        click.echo(summary.stopped(outcome, shlex.join(["finetune", *sys.argv[1:]])), err=True)
        return exit_codes.STOPPED
    click.echo(summary.failed(outcome, finished.log), err=True)
    return exit_codes.INPUT_WRONG if outcome.code in summary.WRONG_INPUT else exit_codes.FAILED
