"""`finetune delete`: the job and its pods; never its output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster


@click.command()
@job_name
@click.option("--wait", is_flag=True, help="Return when the job and all of its pods are gone.")
@on_cluster
def command(cluster: Cluster, name: str, wait: bool) -> None:
    """Delete the job NAME and its pods. What it has written to its output stays."""
    from finetune_cli.remote import switches  # noqa: PLC0415

    switches.delete(cluster, name, wait=wait)
