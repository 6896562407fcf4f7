"""`finetune status`: the status of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli import printing
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@printing.option(help="Print the status for programs.")
@on_cluster
def command(cluster: ClusterClient, name: str, form: str | None) -> None:
    """Show the status of the job NAME: method, layout, progress, result and conditions."""
    from finetune_cli.remote import views  # noqa: PLC0415
    from finetune_cli.remote.describe import describe  # noqa: PLC0415

    job = cluster.job(name)
    if form:
        printing.document(job.get("status") or {}, form)
    else:
        click.echo(describe(job, views.now()))
