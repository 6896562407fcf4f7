"""`finetune list`: the jobs of a namespace, or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli import printing
from finetune_cli.remote.options import on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster


@click.command()
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Jobs of all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only jobs with these labels: team=a,tier!=b.")
@printing.option(help="Print the jobs for programs.")
@on_cluster
def command(cluster: Cluster, everywhere: bool, selector: str, form: str | None) -> None:
    """List jobs: phase, model, method, GPUs, step, loss, time left, age."""
    from finetune_cli.remote import views  # noqa: PLC0415

    jobs = cluster.jobs(selector, everywhere=everywhere)
    if form:
        printing.document(views.lean(jobs), form)
    elif jobs:
        click.echo(views.table(jobs, views.present(), namespaces=everywhere))
    else:
        where = "" if everywhere else f" in namespace {cluster.namespace}"
        click.echo(f"There are no jobs{where}{' with these labels' if selector else ''}.", err=True)
