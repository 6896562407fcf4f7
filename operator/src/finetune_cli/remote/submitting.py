"""Creates a prepared job on the cluster, and uploads its rows.

A job with an upload is created suspended, so that it cannot run before its rows are there, and so that it owns the
ConfigMap or the transfer pod, which are then deleted with it. Any error deletes the job. If this process is killed,
the job stays suspended with an annotation that names what it waits for, and the same command resumes it.
"""

from __future__ import annotations

from contextlib import suppress

import click

from finetune_api.resource import conditions as c
from finetune_api.resource.names import API_VERSION, PLURAL
from finetune_cli.errors import InvalidInput

from . import transfer
from .api_client import Json
from .cluster import ClusterClient
from .dataset_upload import AWAITING, DatasetUpload, config_map
from .errors import AlreadyExists, ApiError, Unreachable, invalid
from .following import failure
from .preparing import PreparedJob
from .progress import progress
from .transfer_pod import interruptible, transfer_pod
from .views import condition, phase

VERDICT_SECONDS = 5.0
"""How long to wait for the operator's verdict: a running operator needs a fraction of a second."""
GARBAGE_COLLECTION_SECONDS = 60.0


def submit(cluster: ClusterClient, job: PreparedJob, *, image: str | None, dry_run: bool = False) -> Json:
    """The job as the server stores it, or would store it. Raises CommandError; then the job has been deleted."""
    if job.upload is None or dry_run:
        return _create(cluster, job.manifest, dry_run=dry_run)
    return _create_with_rows(cluster, job.manifest, job.upload, image)


def verdict(cluster: ClusterClient, name: str) -> Json | None:
    """The job once the operator has accepted it, or waits for the cluster to show whether it can; None if no operator
    reacts. Raises InvalidInput if it is refused.
    """
    for job in cluster.watch_job(name, seconds=VERDICT_SECONDS):
        if job and (error := failure(job)):
            raise error
        accepted = condition(job, c.ACCEPTED) if job else None
        if accepted and accepted["status"] != "False":
            return job
    return None


def _create_with_rows(cluster: ClusterClient, manifest: Json, upload: DatasetUpload, image: str | None) -> Json:
    name = manifest["metadata"]["name"]
    job = _create_suspended(cluster, manifest, upload.digest)
    with interruptible():
        try:
            if upload.claim:
                _upload_to_claim(cluster, job, upload, image)
            else:
                _create_config_map(cluster, job, upload)
            spec = {"suspend": manifest["spec"].get("suspend")}
            return cluster.patch_job(name, {"metadata": {"annotations": {AWAITING: None}}, "spec": spec})
        except BaseException:
            _delete_again(cluster, name)
            raise


def _delete_again(cluster: ClusterClient, name: str) -> None:
    """Delete the job, and with it what it owns."""
    try:
        cluster.delete(API_VERSION, PLURAL, name)
    except (ApiError, Unreachable) as error:
        click.echo(f"finetunejob/{name} could not be deleted and stays suspended: {error}", err=True)


def _create(cluster: ClusterClient, manifest: Json, *, dry_run: bool) -> Json:
    try:
        return cluster.create_job(manifest, dry_run=dry_run)
    except AlreadyExists:
        raise _already_exists(cluster.job(manifest["metadata"]["name"])) from None


def _already_exists(job: Json) -> InvalidInput:
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    message = f"The job {name} already exists in namespace {namespace}; it is {phase(job)}."
    remedy = f"Choose another metadata.name, or first run `finetune delete {name}`."
    return invalid(f"finetunejob {name}", "AlreadyExists", message, remedy)


def _create_suspended(cluster: ClusterClient, manifest: Json, digest: str) -> Json:
    """The job, suspended until its rows are there; or the one that an interrupted `submit` left, to be resumed."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), AWAITING: digest}
    suspended = {**manifest, "metadata": {**metadata, "annotations": annotations},
                 "spec": {**manifest["spec"], "suspend": True}}  # fmt: skip
    with suppress(AlreadyExists):
        return cluster.create_job(suspended)
    found = cluster.job(metadata["name"])
    awaited = (found["metadata"].get("annotations") or {}).get(AWAITING)
    if awaited != digest or found["spec"] != suspended["spec"]:
        raise _already_exists(found)
    click.echo(f"finetunejob/{metadata['name']} exists from an interrupted submit; resuming its upload", err=True)
    return found


def _create_config_map(cluster: ClusterClient, job: Json, upload: DatasetUpload) -> None:
    """Create the ConfigMap. Waits while one of a deleted job of the same name is still being deleted."""
    body = config_map(upload, job)
    name, uid = body["metadata"]["name"], job["metadata"]["uid"]
    with suppress(AlreadyExists):
        cluster.create("v1", "configmaps", body)
        return
    for found in cluster.watch("v1", "configmaps", name, seconds=GARBAGE_COLLECTION_SECONDS):
        owners = [o["uid"] for o in (found or {}).get("metadata", {}).get("ownerReferences") or ()]
        if found is None:
            cluster.create("v1", "configmaps", body)
            return
        if uid in owners:
            return
        if not owners:
            break
    message = f"The ConfigMap {name} already exists and does not belong to this job."
    raise invalid(f"configmap {name}", "AlreadyExists", message, f"Delete it: kubectl delete configmap {name}")


def _upload_to_claim(cluster: ClusterClient, job: Json, upload: DatasetUpload, image: str | None) -> None:
    """Upload the rows, unless the operator refuses the job."""
    verdict(cluster, job["metadata"]["name"])

    def message(text: str) -> None:
        click.echo(text, err=True)

    title = f"uploading {upload.file.name} to {upload.uri}"
    with transfer_pod(cluster, job, upload.claim, image=image, read_only=False, message=message) as pod:
        path = cluster.path("v1", "pods", pod)
        with progress(title, upload.size, quiet=False) as on_progress:
            transfer.upload_file(cluster.client, path, upload.file, upload.pod_path, upload.digest, on_progress)
