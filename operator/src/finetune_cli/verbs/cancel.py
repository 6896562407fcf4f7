"""`finetune cancel`: the end of a job, which stays to be looked at."""

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
    """End the job NAME for good, after a checkpoint. The job and its output stay to be looked at."""
    from finetune_cli.remote import switches  # noqa: PLC0415

    switches.cancel(cluster, name)
