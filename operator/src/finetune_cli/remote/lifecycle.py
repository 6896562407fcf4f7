"""Suspend, resume, cancel, delete: one write each, refused if it would have no effect."""

from __future__ import annotations

import click

from finetune_api.resource import conditions as c
from finetune_api.validation.predicates import find

from .api_client import Json
from .cluster import ClusterClient
from .errors import invalid
from .views import condition_is_true, has_ended, phase


def suspend(cluster: ClusterClient, name: str) -> None:
    job = _unfinished(cluster, name, "suspended")
    if find(job, "spec.suspend") is True:
        _print(name, "is already suspended")
        return
    cluster.patch_job(name, {"spec": {"suspend": True}})
    _print(name, "suspended: its pods save a checkpoint and exit")


def resume(cluster: ClusterClient, name: str) -> None:
    job = _unfinished(cluster, name, "resumed")
    if find(job, "spec.suspend") is not True:
        _print(name, "is not suspended")
        return
    cluster.patch_job(name, {"spec": {"suspend": False}})
    _print(name, "resumed: it continues from its last checkpoint")


def cancel(cluster: ClusterClient, name: str) -> None:
    _unfinished(cluster, name, "cancelled")
    cluster.patch_job(name, {"spec": {"cancel": True}})
    _print(name, "cancelled: its pods save a checkpoint and exit")


def delete(cluster: ClusterClient, name: str, *, wait: bool) -> None:
    """Deletes the job's children too. With `wait` in the foreground: the job disappears after them."""
    job = cluster.job(name)
    cluster.delete_job(name, policy="Foreground" if wait else "Background")
    if wait:
        uid = job["metadata"]["uid"]
        for found in cluster.watch_job(name):
            if found is None or found["metadata"]["uid"] != uid:
                break
    output = find(job, "spec.output.uri")
    _print(name, f"deleted{f'; its output is kept at {output}' if output else ''}")


def _unfinished(cluster: ClusterClient, name: str, action: str) -> Json:
    """The job, unless it has ended, or nothing changes that it is going to."""
    job = cluster.job(name)
    if has_ended(job) or condition_is_true(job, c.FAILURE_TARGET):
        state = "has ended" if has_ended(job) else "is ending"
        message = f"The job {state} ({phase(job)}) and cannot be {action}."
        raise invalid(f"finetunejob {name}", "Ended", message, "To train again, submit it under another name.")
    return job


def _print(name: str, message: str) -> None:
    click.echo(f"finetunejob/{name} {message}", err=True)
