"""`finetune suspend`, `resume`, `cancel` and `delete`: one write each, refused if it would have no effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_api.validation.predicates import find
from finetune_cli.remote.errors import invalid
from finetune_cli.remote.options import job_name, on_cluster

if TYPE_CHECKING:
    from finetune_cli.remote.api_client import Json
    from finetune_cli.remote.cluster import ClusterClient


@click.command()
@job_name
@on_cluster
def suspend(cluster: ClusterClient, name: str) -> None:
    """Stop the job NAME after it has saved a checkpoint, and release its GPUs.

    `finetune resume` continues from that checkpoint.
    """
    job = _unfinished(cluster, name, "suspended")
    if find(job, "spec.suspend") is True:
        _print(name, "is already suspended")
        return
    cluster.patch_job(name, {"spec": {"suspend": True}})
    _print(name, "suspended: its pods save a checkpoint and exit")


@click.command()
@job_name
@on_cluster
def resume(cluster: ClusterClient, name: str) -> None:
    """Continue the suspended job NAME from its last checkpoint."""
    job = _unfinished(cluster, name, "resumed")
    if find(job, "spec.suspend") is not True:
        _print(name, "is not suspended")
        return
    cluster.patch_job(name, {"spec": {"suspend": False}})
    _print(name, "resumed: it continues from its last checkpoint")


@click.command()
@job_name
@on_cluster
def cancel(cluster: ClusterClient, name: str) -> None:
    """Save a checkpoint, and end the job NAME permanently.

    The FinetuneJob and its output are kept.
    """
    _unfinished(cluster, name, "cancelled")
    cluster.patch_job(name, {"spec": {"cancel": True}})
    _print(name, "cancelled: its pods save a checkpoint and exit")


@click.command()
@job_name
@click.option("--wait", is_flag=True, help="Return when the job and all of its pods are gone.")
@on_cluster
def delete(cluster: ClusterClient, name: str, wait: bool) -> None:
    """Delete the job NAME and its pods. Its output is kept."""
    job = cluster.job(name)
    # In the foreground, the job disappears after its children.
    cluster.delete_job(name, policy="Foreground" if wait else "Background")
    if wait:
        for found in cluster.watch_job(name):
            if found is None or found["metadata"]["uid"] != job["metadata"]["uid"]:
                break
    output = find(job, "spec.output.uri")
    _print(name, f"deleted{f'; its output is kept at {output}' if output else ''}")


def _unfinished(cluster: ClusterClient, name: str, action: str) -> Json:
    """The job, unless it has ended, or nothing changes that it is going to."""
    from finetune_api.resource.conditions import FAILURE_TARGET  # noqa: PLC0415
    from finetune_cli.remote.views import condition_is_true, has_ended, phase  # noqa: PLC0415

    job = cluster.job(name)
    if has_ended(job) or condition_is_true(job, FAILURE_TARGET):
        state = "has ended" if has_ended(job) else "is ending"
        message = f"The job {state} ({phase(job)}) and cannot be {action}."
        raise invalid(f"finetunejob {name}", "Ended", message, "To train again, submit it under another name.")
    return job


def _print(name: str, message: str) -> None:
    click.echo(f"finetunejob/{name} {message}", err=True)
