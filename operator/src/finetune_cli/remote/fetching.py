"""Downloads the result of a job from its claim. Called by `finetune fetch`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from finetune_api.runtime.protocol import RESULT
from finetune_api.validation import uris
from finetune_api.validation.predicates import find
from finetune_api.validation.uris import Scheme
from finetune_plan import mounts

from . import transfer
from .api_client import Json
from .cluster import ClusterClient
from .errors import invalid
from .following import has_succeeded
from .progress import OnProgress, progress
from .transfer_pod import transfer_pod
from .views import phase
from .volume_refs import OUTPUT


def fetch(cluster: ClusterClient, name: str, target: Path, *, image: str | None, quiet: bool) -> None:
    """Raises InvalidInput if there is no result, or if `target` exists. The folder appears when it is complete."""
    job = cluster.job(name)
    claim, folder = result_location(job)
    if target.exists():
        raise invalid(f"--to {target}", "Exists", f"{target} already exists.", "Give --to with a new folder.")
    message = (lambda _: None) if quiet else lambda text: click.echo(text, err=True)
    with transfer_pod(cluster, job, claim, image=image, read_only=True, message=message) as pod, ExitStack() as stack:

        def on_start(total: int) -> OnProgress:
            return stack.enter_context(progress(f"downloading {folder} to {target}", total, quiet=quiet))

        transfer.download_folder(cluster.client, cluster.path("v1", "pods", pod), folder, target, on_start)


def result_location(job: Json) -> tuple[str, str]:
    """Claim of a job's result, and its folder inside a pod. Raises InvalidInput."""
    name = job["metadata"]["name"]
    path = f"finetunejob {name}"
    if not has_succeeded(job):
        message = f"The job has no result: it is {phase(job)}."
        raise invalid(path, "NotSucceeded", message, f"`finetune watch {name}` shows its progress.")
    uri = find(job, f"spec.{OUTPUT}")
    if uri is None:
        message = "The job has no output.uri: its result was deleted with its pods."
        raise invalid(path, "OutputNotKept", message, "Submit it with --output pvc://CLAIM/PATH.")
    source = uris.OUTPUT.parse(uri)
    if source.scheme is not Scheme.PVC:
        message = f"The result is at {uri}. Only results on a claim (pvc://CLAIM/PATH) can be fetched."
        raise invalid(path, "NotOnAClaim", message, f"Download {uri.rstrip('/')}/{RESULT} with another tool.")
    written = find(job, "status.result.uri") or f"{uri.rstrip('/')}/{RESULT}"
    return source.name, mounts.mount(written, uris.OUTPUT).path
