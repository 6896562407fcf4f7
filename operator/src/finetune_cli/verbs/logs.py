"""`finetune logs`: what the pods of a job say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster


@click.command()
@job_name
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over, over restarts too.")
@click.option("--node", type=click.IntRange(0), help="Only the pod of this node rank; 0 has the progress records.")
@click.option("--run", type=click.IntRange(1), help="Only this run. The newest if absent.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of each pod.")
@click.option("--raw", is_flag=True, help="Print progress records as the JSON that they are.")
@on_cluster
def command(cluster: Cluster, name: str, follow: bool, raw: bool, **wanted: int | None) -> None:
    """Print what the pods of the job NAME say, in the order of time, each line with its node in front."""
    from finetune_cli.remote import lines, reading_logs  # noqa: PLC0415

    read = reading_logs.follow if follow else reading_logs.once
    for line in read(cluster, cluster.job(name), reading_logs.Wanted(**wanted)):
        click.echo(lines.shown(line, raw=raw))
