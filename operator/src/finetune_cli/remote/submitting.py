"""A prepared job onto the cluster, with its rows.

A job with rows of its own is created suspended, so that nothing runs before they are there, and so that what
carries them (a ConfigMap, the transfer pod) is owned by it and goes with it. Whatever goes wrong on the way removes
the job; if we are killed, a suspended job is left that says what it waits for, and the same command goes on with it.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from finetune_api.resource import conditions as c
from finetune_api.resource.names import API_VERSION, PLURAL
from finetune_cli.errors import Refused

from . import transfer
from .carrier import carrier, interruptible
from .cluster import Cluster
from .dataset import AWAITING, Parcel, config_map
from .errors import ApiError, Unreachable, refused
from .following import failure
from .meter import meter
from .preparing import Prepared
from .server import Json
from .views import condition, phase

VERDICT_SECONDS = 5.0
"""How long we wait for the operator's verdict: it takes a fraction of a second where an operator runs."""
COLLECTED_SECONDS = 60.0


def submit(cluster: Cluster, job: Prepared, *, image: str | None) -> Json:
    """The job as the server has it. Raises Refused; then nothing of it is left."""
    if job.parcel is None:
        return _created(cluster, job.manifest)
    return _with_rows(cluster, job.manifest, job.parcel, image)


def verdict(cluster: Cluster, name: str) -> Json | None:
    """The job once the operator has judged it; None if nobody does. Raises Refused if it is refused."""
    for job in cluster.job_over_time(name, seconds=VERDICT_SECONDS):
        if job and (problem := failure(job)):
            raise problem
        accepted = condition(job, c.ACCEPTED) if job else None
        if accepted and accepted["status"] == "True":
            return job
    return None


def _with_rows(cluster: Cluster, manifest: Json, rows: Parcel, image: str | None) -> Json:
    name = manifest["metadata"]["name"]
    deliver = _upload if rows.claim else _ride
    job = _suspended(cluster, manifest, rows.digest)
    with interruptible():
        try:
            deliver(cluster, job, rows, image)
            spec = {"suspend": manifest["spec"].get("suspend")}
            return cluster.patch_job(name, {"metadata": {"annotations": {AWAITING: None}}, "spec": spec})
        except BaseException:
            _undo(cluster, name)
            raise


def _undo(cluster: Cluster, name: str) -> None:
    """Remove the job; what it owns goes with it."""
    try:
        cluster.delete(API_VERSION, PLURAL, name)
    except (ApiError, Unreachable) as error:
        click.echo(f"finetunejob/{name} could not be removed ({error}); it stays suspended", err=True)


def _taken(job: Json) -> Refused:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    message = f"There is a job {name} in namespace {namespace} already; it is {phase(job)}."
    remedy = f"Give yours another metadata.name, or first `finetune delete {name}`."
    return refused(f"finetunejob {name}", "AlreadyExists", message, remedy)


def ask(cluster: Cluster, job: Prepared) -> Json:
    """The job as the server would have it; nothing is created. Raises Refused."""
    return _created(cluster, job.manifest, dry_run=True)


def _created(cluster: Cluster, manifest: Json, *, dry_run: bool = False) -> Json:
    try:
        return cluster.create_job(manifest, dry_run=dry_run)
    except ApiError as error:
        if error.status != 409:
            raise
        raise _taken(cluster.job(manifest["metadata"]["name"])) from None


def _suspended(cluster: Cluster, manifest: Json, digest: str) -> Json:
    """The job, held back until its rows are there. One that an interrupted call left is taken up again."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), AWAITING: digest}
    held = {**manifest, "metadata": {**metadata, "annotations": annotations},
            "spec": {**manifest["spec"], "suspend": True}}  # fmt: skip
    try:
        return cluster.create_job(held)
    except ApiError as error:
        if error.status != 409:
            raise
    found = cluster.job(metadata["name"])
    awaited = (found["metadata"].get("annotations") or {}).get(AWAITING)
    if awaited != digest or found["spec"] != held["spec"]:
        raise _taken(found)
    click.echo(f"finetunejob/{metadata['name']} waits for its rows since an earlier call; going on with it", err=True)
    return found


def _ride(cluster: Cluster, job: Json, rows: Parcel, image: str | None) -> None:
    """Rows in a ConfigMap. One of an earlier job of this name, just deleted, is waited out."""
    body = config_map(rows, job)
    name, uid = body["metadata"]["name"], job["metadata"]["uid"]
    try:
        cluster.create("v1", "configmaps", body)
        return
    except ApiError as error:
        if error.status != 409:
            raise
    for found in cluster.object_over_time("v1", "configmaps", name, seconds=COLLECTED_SECONDS):
        owners = [o["uid"] for o in (found or {}).get("metadata", {}).get("ownerReferences") or ()]
        if found is None:
            cluster.create("v1", "configmaps", body)
            return
        if uid in owners:
            return
        if not owners:
            break
    raise refused(f"configmap {name}", "AlreadyExists", f"A ConfigMap {name} exists and is not this job's.",
                  f"Remove it: kubectl delete configmap {name}")  # fmt: skip


def _upload(cluster: Cluster, job: Json, rows: Parcel, image: str | None) -> None:
    """Rows onto the claim. A job that the operator refuses is not worth the way."""
    verdict(cluster, job["metadata"]["name"])
    say: Callable[[str], None] = lambda text: click.echo(text, err=True)  # noqa: E731
    with carrier(cluster, job, rows.claim, image=image, read_only=False, say=say) as pod:
        path = cluster.path("v1", "pods", pod)
        with meter(f"uploading {rows.file.name} to {rows.uri}", rows.size, quiet=False) as moved:
            transfer.upload(cluster.server, path, rows.file, rows.pod_path, rows.digest, moved)
