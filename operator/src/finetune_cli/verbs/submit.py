"""`finetune submit`: creates a job on a cluster, and uploads local rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from finetune_cli import job_file, overrides, printing
from finetune_cli.overrides import Overrides
from finetune_cli.remote.options import on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.api_client import Json
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@click.argument("file")
@overrides.options
@click.option("--wait", is_flag=True, help="Show the progress of the job until it ends.")
@click.option("--dry-run", is_flag=True, help="Let the cluster validate the job, and print it; create nothing.")
@click.option("--transfer-image", metavar="IMAGE", help="Image with python for the pod that receives an upload.")
@printing.option(help="Print the job for programs.")
@on_cluster
def command(cluster: ClusterClient, file: str, wait: bool, dry_run: bool, form: str | None, **options: Any) -> None:
    """Start the job in FILE ("-" is standard input) on a cluster.

    The job is validated locally first, as `finetune validate` does, with exit code 2 on problems. The file of
    --dataset is uploaded: up to 900 KiB into a ConfigMap that the job owns, a larger file to the job's volume. If
    the upload fails, the job is deleted. With --wait the exit code is that of `finetune watch`.
    """
    from finetune_cli.remote import submitting, views  # noqa: PLC0415
    from finetune_cli.remote.preparing import prepare  # noqa: PLC0415

    image = options.pop("transfer_image")
    prepared = prepare(job_file.read(file), Overrides(**options), cluster)
    job = submitting.submit(cluster, prepared, image=image, dry_run=dry_run)
    if dry_run:
        printing.document(views.without_managed_fields(job), form or "yaml")
        return
    if not form:
        click.echo(f"finetunejob/{job['metadata']['name']} created in namespace {cluster.namespace}")
    job = _wait(cluster, job, until_end=wait, quiet=bool(form))
    if form:
        printing.document(views.without_managed_fields(job), form)


def _wait(cluster: ClusterClient, job: Json, *, until_end: bool, quiet: bool) -> Json:
    """The job after the operator's verdict, or after its end."""
    from finetune_api.resource import conditions  # noqa: PLC0415
    from finetune_cli.remote import following, submitting, views  # noqa: PLC0415

    name = job["metadata"]["name"]
    if until_end:
        return following.follow(cluster, name, quiet=quiet)
    accepted = submitting.verdict(cluster, name)
    if accepted is None:
        message = f"No operator has reconciled the job yet. `finetune diagnose {name}` shows the cause."
        click.echo(message, err=True)
    elif not quiet:
        found = views.condition(accepted, conditions.ACCEPTED)
        if found and found["status"] == "Unknown":
            click.echo(f"The job is not accepted yet: {found['message']}", err=True)
        click.echo(f"To watch its progress: finetune watch {name} -n {cluster.namespace}", err=True)
    return accepted or job
