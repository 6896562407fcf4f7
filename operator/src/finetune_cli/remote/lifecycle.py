"""Suspend, resume, cancel, delete: one write each, refused where it would do nothing that was meant."""

from __future__ import annotations

import click

from finetune_api.validation.predicates import find

from .cluster import Cluster
from .errors import refused
from .server import Json
from .views import ended, phase


def suspend(cluster: Cluster, name: str) -> None:
    job = _unfinished(cluster, name, "suspended")
    if find(job, "spec.suspend") is True:
        _say(name, "is suspended already")
        return
    cluster.patch_job(name, {"spec": {"suspend": True}})
    _say(name, "suspended: its pods save a checkpoint and end")


def resume(cluster: Cluster, name: str) -> None:
    job = _unfinished(cluster, name, "resumed")
    if find(job, "spec.suspend") is not True:
        _say(name, "is not suspended")
        return
    cluster.patch_job(name, {"spec": {"suspend": False}})
    _say(name, "resumed: it goes on from its last checkpoint")


def cancel(cluster: Cluster, name: str) -> None:
    _unfinished(cluster, name, "cancelled")
    cluster.patch_job(name, {"spec": {"cancel": True}})
    _say(name, "cancelled: its pods save a checkpoint and end")


def delete(cluster: Cluster, name: str, *, wait: bool) -> None:
    """The job's children go with it. Foreground: the job is gone when they are."""
    job = cluster.job(name)
    cluster.delete_job(name, policy="Foreground" if wait else "Background")
    if wait:
        uid = job["metadata"]["uid"]
        for found in cluster.job_over_time(name):
            if found is None or found["metadata"]["uid"] != uid:
                break
    kept = find(job, "spec.output.uri")
    _say(name, f"deleted{f'; its output stays in {kept}' if kept else ''}")


def _unfinished(cluster: Cluster, name: str, done: str) -> Json:
    """The job, unless it is over."""
    job = cluster.job(name)
    if ended(job):
        message = f"The job is over ({phase(job)}) and cannot be {done} any more."
        raise refused(f"finetunejob {name}", "Ended", message, "Submit it under another name to train again.")
    return job


def _say(name: str, what: str) -> None:
    click.echo(f"finetunejob/{name} {what}", err=True)
