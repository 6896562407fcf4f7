"""`finetune submit`: a job onto a cluster, with rows of this machine if wished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from finetune_cli import changes, printing, reading
from finetune_cli.changes import Changes
from finetune_cli.remote.options import on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.cluster import Cluster
    from finetune_cli.remote.server import Json


@click.command()
@click.argument("file")
@changes.options
@click.option("--wait", is_flag=True, help="Show how the job comes along, and end as it ends.")
@click.option("--dry-run", is_flag=True, help="Ask the cluster whether it takes the job, print it, create nothing.")
@click.option("--transfer-image", metavar="IMAGE", help="Image, with python, of the pod that takes an upload.")
@printing.option(help="Print the job for programs.")
@on_cluster
def command(cluster: Cluster, file: str, wait: bool, dry_run: bool, form: str | None, **options: Any) -> None:
    """Start the job in FILE ("-" is standard input) on a cluster.

    What `finetune validate` finds wrong is told first, with exit code 2. The file of --dataset is sent along: up to
    900 KiB of it in a ConfigMap that the job owns, more of it to the job's volume. If that fails, no job is left.
    With --wait the exit code is that of `finetune watch`.
    """
    from finetune_cli.remote import submitting, views  # noqa: PLC0415
    from finetune_cli.remote.preparing import prepared  # noqa: PLC0415

    image = options.pop("transfer_image")
    asked = prepared(reading.read(file), Changes(**options), cluster)
    if dry_run:
        printing.document(views.lean(submitting.ask(cluster, asked)), form or "yaml")
        return
    job = submitting.submit(cluster, asked, image=image)
    name = job["metadata"]["name"]
    if not form:
        click.echo(f"finetunejob/{name} created in namespace {cluster.namespace}")
    job = _seen_through(cluster, job, wait=wait, quiet=bool(form))
    if form:
        printing.document(views.lean(job), form)


def _seen_through(cluster: Cluster, job: Json, *, wait: bool, quiet: bool) -> Json:
    """The job as it is after the operator's verdict, or after its end."""
    from finetune_cli.remote import following, submitting  # noqa: PLC0415

    name = job["metadata"]["name"]
    if wait:
        return following.follow(cluster, name, quiet=quiet)
    judged = submitting.verdict(cluster, name)
    if judged is None:
        click.echo(f"No operator has looked at the job yet; `finetune diagnose {name}` says why.", err=True)
    elif not quiet:
        click.echo(f"To see how it comes along: finetune watch {name} -n {cluster.namespace}", err=True)
    return judged or job
