"""`finetune list`: the jobs of a namespace, or of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli import printing
from finetune_cli.remote.options import on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="List the jobs of all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only jobs with these labels: team=a,tier!=b.")
@printing.option(help="Print the jobs for programs.")
@on_cluster
def command(cluster: ClusterClient, all_namespaces: bool, selector: str, form: str | None) -> None:
    """List jobs: phase, model, method, GPUs, step, loss, time left, age."""
    from finetune_cli.remote import views  # noqa: PLC0415

    jobs = cluster.jobs(selector, all_namespaces=all_namespaces)
    if form:
        printing.document(views.without_managed_fields(jobs), form)
    elif jobs:
        click.echo(views.table(jobs, views.now(), namespaces=all_namespaces))
    else:
        where = "" if all_namespaces else f" in namespace {cluster.namespace}"
        click.echo(f"No jobs found{where}{' with these labels' if selector else ''}.", err=True)
