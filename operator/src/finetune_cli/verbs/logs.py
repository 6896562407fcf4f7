"""`finetune logs`: the logs of a job's pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@click.option("-f", "--follow", is_flag=True, help="Follow until the job has ended, across restarts.")
@click.option("--node", type=click.IntRange(0), help="Only the pod of this node; node 0 writes the progress records.")
@click.option("--run", type=click.IntRange(1), help="Only this run; default: the latest.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of each pod.")
@click.option("--raw", is_flag=True, help="Print progress records as JSON.")
@on_cluster
def command(cluster: ClusterClient, name: str, follow: bool, raw: bool, **selected: int | None) -> None:
    """Print the logs of the pods of the job NAME, in order of time, each line with its node in front."""
    from finetune_cli.remote import log_lines, pod_logs  # noqa: PLC0415

    read = pod_logs.follow if follow else pod_logs.read
    for line in read(cluster, cluster.job(name), pod_logs.Selection(**selected)):
        click.echo(log_lines.format_line(line, raw=raw))
