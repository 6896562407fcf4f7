"""`finetune watch`: the progress of a job until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli import printing
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@printing.option(help="Print the final status for programs.")
@on_cluster
def command(cluster: ClusterClient, name: str, quiet: bool, form: str | None) -> None:
    """Show the progress of the job NAME until it ends, as `finetune run` does.

    Exit code 0 if the job succeeds, 1 if it fails, is cancelled or deleted, 2 if it is refused. Ctrl-C stops
    watching; the job continues.
    """
    from finetune_cli.remote.following import follow  # noqa: PLC0415

    job = follow(cluster, name, quiet=quiet or bool(form))
    if form:
        printing.document(job["status"], form)
