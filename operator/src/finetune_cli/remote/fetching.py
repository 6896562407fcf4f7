"""The result of a job from its claim to a folder here. Called by `finetune fetch`."""

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
from .carrier import carrier
from .cluster import Cluster
from .errors import refused
from .following import succeeded
from .meter import Moved, meter
from .places import OUTPUT
from .server import Json
from .views import phase


def fetch(cluster: Cluster, name: str, target: Path, *, image: str | None, quiet: bool) -> None:
    """Raises Refused where there is nothing to fetch, or no place for it; the folder appears when it is whole."""
    job = cluster.job(name)
    claim, folder = place(job)
    if target.exists():
        message = f"{target} exists already."
        raise refused(f"--to {target}", "Exists", message, "Give --to with a folder that is not there yet.")
    say = (lambda _: None) if quiet else lambda text: click.echo(text, err=True)
    with carrier(cluster, job, claim, image=image, read_only=True, say=say) as pod, ExitStack() as stack:

        def begin(total: int) -> Moved:
            return stack.enter_context(meter(f"fetching {folder} to {target}", total, quiet=quiet))

        transfer.download(cluster.server, cluster.path("v1", "pods", pod), folder, target, begin)


def place(job: Json) -> tuple[str, str]:
    """Claim and folder, as a pod sees it, of a job's result. Raises Refused."""
    name = job["metadata"]["name"]
    path = f"finetunejob {name}"
    if not succeeded(job):
        message = f"The job has no result: it is {phase(job)}."
        raise refused(path, "NotSucceeded", message, f"`finetune watch {name}` shows how it comes along.")
    uri = find(job, f"spec.{OUTPUT}")
    if uri is None:
        message = "The job names no output.uri: its result ended with its pods."
        raise refused(path, "OutputNotKept", message, "Submit it with --output pvc://CLAIM/PATH.")
    source = uris.OUTPUT.parse(uri)
    if source.scheme is not Scheme.PVC:
        message = f"The result lies at {uri}, and only results on a claim (pvc://CLAIM/PATH) can be fetched."
        raise refused(path, "NotOnAClaim", message, f"Get {uri.rstrip('/')}/{RESULT} with that place's own tools.")
    written = find(job, "status.result.uri") or f"{uri.rstrip('/')}/{RESULT}"
    return source.name, mounts.mount(written, uris.OUTPUT).path
