"""`finetune resume`: on from the last checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster


@click.command()
@job_name
@on_cluster
def command(cluster: Cluster, name: str) -> None:
    """Let the suspended job NAME go on from its last checkpoint."""
    from finetune_cli.remote import switches  # noqa: PLC0415

    switches.resume(cluster, name)
