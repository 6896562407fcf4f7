"""`finetune suspend`: a checkpoint, and the GPUs back."""

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
    """Stop the job NAME after a checkpoint and give its GPUs back; `finetune resume` goes on from there."""
    from finetune_cli.remote import switches  # noqa: PLC0415

    switches.suspend(cluster, name)
