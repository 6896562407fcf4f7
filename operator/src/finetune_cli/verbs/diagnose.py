"""`finetune diagnose`: why a job is not running."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from finetune_cli import exit_codes, printing
from finetune_cli.errors import format_problem
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@printing.option(help="Print {name, phase, findings, hidden} for programs.")
@on_cluster
def command(cluster: ClusterClient, name: str, form: str | None) -> None:
    """Explain why the job NAME is not running, and how to resolve it.

    Checks the job's conditions, its run, pods, events, claims and ConfigMaps, and the operator's heartbeat, as far
    as your permissions allow. Exit code 1 if there are findings.
    """
    from finetune_cli.remote import findings, snapshot, views  # noqa: PLC0415

    found = snapshot.take(cluster, name)
    problems = findings.findings(found)
    if form:
        answer = {"name": name, "phase": views.phase(found.job), "findings": [asdict(p) for p in problems]}
        printing.document(answer | {"hidden": list(found.hidden)}, form)
    else:
        for problem in problems:
            click.echo(format_problem(problem))
        if not problems:
            click.echo(f"finetunejob/{name}: no problems found; the job is {views.phase(found.job)}.")
        if found.hidden:
            click.echo(f"note: you may not read: {', '.join(found.hidden)}", err=True)
    if problems:
        sys.exit(exit_codes.FAILED)
