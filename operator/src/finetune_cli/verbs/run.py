"""`finetune run`: the plan of a cluster, carried out by processes of this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_cli import changes, exit_codes, files, planning, printing, reading
from finetune_cli.changes import Changes
from finetune_cli.errors import described
from finetune_cli.local import display, summary
from finetune_cli.local.execute import Outcome, execute
from finetune_cli.local.watch import previous_run
from finetune_cli.planning import Planned
from finetune_cli.reading import Input
from finetune_cli.verbs.render import rendered
from finetune_plan import status
from finetune_plan.runconfig import run_config
from finetune_plan.workload import workload


@click.command()
@click.argument("file")
@changes.options
@click.option("--dry-run", is_flag=True, help="Print the manifest that a cluster would run, and do nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@printing.option(help="Print the final status for programs.")
def command(file: str, dry_run: bool, quiet: bool, form: str | None, **options: Any) -> None:
    """Finetune on this machine what the job in FILE ("-" is standard input) says.

    Each node of the job is a process that starts its own ranks, with the command and environment that its pod
    would have on a cluster. The result, checkpoints, logs and status go to --output, or to output.uri of the
    job, or to <name>-output. Ctrl-C saves a checkpoint and ends with exit code 75; the same command then
    continues. Exit code 1 if the run failed, 2 if the input is wrong.
    """
    source, asked = reading.read(file), Changes(**options)
    if dry_run:
        printing.document(rendered(planning.planned(source, asked), "pytorchjob"), form or "yaml")
        return
    found = _prepared(source, asked)
    if not quiet:
        planning.say_notes(found.resolution)
    outcome = _run(found, quiet=quiet)
    if form:
        printing.document(outcome.status.model_dump(mode="json", exclude_none=True), form)
    sys.exit(_told(outcome, found, quiet=quiet or bool(form)))


def _prepared(source: Input, asked: Changes) -> Planned:
    """The planned job with an output folder of this machine. Raises Refused; nothing is written."""
    found = planning.planned(source, asked)
    if not find(found.resource["spec"], files.OUTPUT[0]):
        asked = changes.with_output(asked, f"{found.resolution.name}-output")
        found = planning.planned(source, asked)
    spec, data = found.resolution.spec, run_config(found.resolution).data
    problems = [*files.elsewhere(spec), *files.data_problems(spec, data), *files.model_problems(spec)]
    if problems:
        raise source.refused(problems)
    return found


def _run(found: Planned, *, quiet: bool) -> Outcome:
    output = Path(run_config(found.resolution).output)
    work = workload(found.resolution, planning.SETTINGS, previous_run(output) + 1)
    now = planning.now()
    first = status.started(status.judged(found.verdict, now=now), work, now=now)
    try:
        return execute(work, output, first, display.choose(quiet=quiet))
    except OSError as error:  # a full disk, most likely: logs and status could not be written
        meaning = MEANINGS[Exit.STORAGE_FAILED]
        message = f"{meaning.sentence} ({error.strerror})"
        click.echo(described(Problem("spec.output.uri", meaning.reason, message, meaning.remedy)), err=True)
        sys.exit(exit_codes.FAILED)


def _told(outcome: Outcome, found: Planned, *, quiet: bool) -> int:
    """Say how it ended; return the exit code."""
    ending = outcome.ending
    if ending.code == Exit.OK:
        if not quiet:
            output = Path(run_config(found.resolution).output)
            click.echo(summary.succeeded(ending, summary.records(output), outcome.seconds))
        return Exit.OK
    if ending.code == Exit.STOPPED:
        click.echo(summary.stopped(ending, shlex.join(["finetune", *sys.argv[1:]])), err=True)
        return Exit.STOPPED
    click.echo(summary.failed(ending, outcome.log), err=True)
    return exit_codes.INPUT_WRONG if ending.code in summary.WRONG_INPUT else exit_codes.FAILED
