"""`finetune list`, `status`, `watch`, `logs`, `diagnose` and `fetch`: jobs on a cluster, and their results."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune_api.runtime.protocol import RESULT
from finetune_cli import exit_codes, printing
from finetune_cli.errors import format_problem
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@click.option("-A", "--all-namespaces", is_flag=True, help="List the jobs of all namespaces.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only jobs with these labels: team=a,tier!=b.")
@printing.option(help="Print the jobs for programs.")
@on_cluster
def list_(cluster: ClusterClient, all_namespaces: bool, selector: str, form: str | None) -> None:
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


@click.command()
@job_name
@printing.option(help="Print the status for programs.")
@on_cluster
def status(cluster: ClusterClient, name: str, form: str | None) -> None:
    """Show the status of the job NAME: method, layout, progress, result and conditions."""
    from finetune_cli.remote import views  # noqa: PLC0415

    job = cluster.job(name)
    if form:
        printing.document(job.get("status") or {}, form)
    else:
        click.echo(views.describe(job, views.now()))


@click.command()
@job_name
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@printing.option(help="Print the final status for programs.")
@on_cluster
def watch(cluster: ClusterClient, name: str, quiet: bool, form: str | None) -> None:
    """Show the progress of the job NAME until it ends, as `finetune run` does.

    Exit code 0 if the job succeeds, 1 if it fails, is cancelled or deleted, 2 if it is refused. Ctrl-C stops
    watching; the job continues.
    """
    from finetune_cli.remote.following import follow  # noqa: PLC0415

    job = follow(cluster, name, quiet=quiet or bool(form))
    if form:
        printing.document(job["status"], form)


@click.command()
@job_name
@click.option("-f", "--follow", is_flag=True, help="Follow until the job has ended, across restarts.")
@click.option("--node", type=click.IntRange(0), help="Only the pod of this node; node 0 writes the progress records.")
@click.option("--run", type=click.IntRange(1), help="Only this run; default: the latest.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines of each pod.")
@click.option("--raw", is_flag=True, help="Print progress records as JSON.")
@on_cluster
def logs(cluster: ClusterClient, name: str, follow: bool, raw: bool, **selected: int | None) -> None:
    """Print the logs of the pods of the job NAME, in order of time, each line with its node in front."""
    from finetune_cli.remote import log_lines, pod_logs  # noqa: PLC0415

    read = pod_logs.follow if follow else pod_logs.read
    for line in read(cluster, cluster.job(name), pod_logs.Selection(**selected)):
        click.echo(log_lines.format_line(line, raw=raw))


@click.command()
@job_name
@printing.option(help="Print {name, phase, findings, hidden} for programs.")
@on_cluster
def diagnose(cluster: ClusterClient, name: str, form: str | None) -> None:
    """Explain why the job NAME is not running, and how to resolve it.

    Checks the job's conditions, its run, pods, events, claims and ConfigMaps, and the operator's heartbeat, as far
    as your permissions allow. Exit code 1 if there are findings.
    """
    from finetune_cli.remote import findings, snapshot, views  # noqa: PLC0415

    found = snapshot.take(cluster, name)
    problems = findings.findings(found)
    if form:
        answer = {"name": name, "phase": views.phase(found.job), "findings": [asdict(p) for p in problems]}
        printing.document(answer | {"hidden": list(found.hidden)}, form)
    else:
        for problem in problems:
            click.echo(format_problem(problem))
        if not problems:
            click.echo(f"finetunejob/{name}: no problems found; the job is {views.phase(found.job)}.")
        if found.hidden:
            click.echo(f"note: you may not read: {', '.join(found.hidden)}", err=True)
    if problems:
        sys.exit(exit_codes.FAILED)


@click.command()
@job_name
@click.option("--to", "target", metavar="FOLDER", help=f"New folder for the result; default: NAME-{RESULT}.")
@click.option("--transfer-image", metavar="IMAGE", help="Image with python for the pod that reads the claim.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@on_cluster
def fetch(cluster: ClusterClient, name: str, target: str | None, transfer_image: str | None, quiet: bool) -> None:
    """Download the result of the job NAME, an adapter or a model, from its claim to a local folder.

    A short-lived pod reads the claim and is deleted afterwards. The folder appears when the download is complete.
    """
    from finetune_cli.remote import fetching  # noqa: PLC0415

    folder = Path(target or f"{name}-{RESULT}")
    fetching.fetch(cluster, name, folder, image=transfer_image, quiet=quiet)
    click.echo(str(folder))
