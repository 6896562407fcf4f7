"""`finetune suspend`, `resume`, `cancel` and `delete`: one write to one job each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@on_cluster
def suspend(cluster: ClusterClient, name: str) -> None:
    """Stop the job NAME after it has saved a checkpoint, and release its GPUs.

    `finetune resume` continues from that checkpoint.
    """
    from finetune_cli.remote import lifecycle  # noqa: PLC0415

    lifecycle.suspend(cluster, name)


@click.command()
@job_name
@on_cluster
def resume(cluster: ClusterClient, name: str) -> None:
    """Continue the suspended job NAME from its last checkpoint."""
    from finetune_cli.remote import lifecycle  # noqa: PLC0415

    lifecycle.resume(cluster, name)


@click.command()
@job_name
@on_cluster
def cancel(cluster: ClusterClient, name: str) -> None:
    """Save a checkpoint, and end the job NAME permanently.

    The FinetuneJob and its output are kept.
    """
    from finetune_cli.remote import lifecycle  # noqa: PLC0415

    lifecycle.cancel(cluster, name)


@click.command()
@job_name
@click.option("--wait", is_flag=True, help="Return when the job and all of its pods are gone.")
@on_cluster
def delete(cluster: ClusterClient, name: str, wait: bool) -> None:
    """Delete the job NAME and its pods. Its output is kept."""
    from finetune_cli.remote import lifecycle  # noqa: PLC0415

    lifecycle.delete(cluster, name, wait=wait)
