"""Rows of this machine on their way to a job: as a ConfigMap where they are few, else as a file on its volume.

Names and paths are made of the content: the same rows have the same URI, which keeps the job's digest, and a file
that is there need not be sent again.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.resource import names
from finetune_api.resource.names import API_VERSION, KIND
from finetune_api.validation import uris
from finetune_api.validation.predicates import find
from finetune_api.validation.uris import Scheme
from finetune_plan.mounts import CLAIMS

from .errors import refused
from .places import OUTPUT
from .server import Json

AWAITING = "finetune.dev/awaits-dataset"
"""Annotation of a job that is suspended until its rows are there; the value is their digest."""
SMALL = 900 << 10
"""Most bytes that ride in a ConfigMap, which may hold 1 MiB with its metadata."""
FOLDER = "finetune-datasets"


@dataclass(frozen=True)
class Parcel:
    """A file and where it goes."""

    file: Path
    size: int
    digest: str
    """SHA-256, in hexadecimal digits."""
    uri: str

    @property
    def source(self) -> uris.Source:
        return uris.ROWS.parse(self.uri)

    @property
    def claim(self) -> str:
        """The claim that it is uploaded to; empty if it rides in a ConfigMap."""
        return self.source.name if self.source.scheme is Scheme.PVC else ""

    @property
    def pod_path(self) -> str:
        return f"{CLAIMS}/{self.source.name}/{self.source.path}"


def parcel(file: Path, job: str, spec: Mapping[str, Any]) -> Parcel:
    """Where the rows in `file` go. Raises Refused if they are many and the job has no volume."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    size, name = file.stat().st_size, re.sub(r"[^-._a-zA-Z0-9]+", "-", file.name)
    if size <= SMALL:
        return Parcel(file, size, digest, f"configmap://{job}-dataset-{digest[:8]}/{name}")
    claim = _claim(spec)
    if claim is None:
        message = f"{file} has {size:,} bytes: too many for a ConfigMap, and the job has no volume to upload it to."
        remedy = (
            "Set output.uri to pvc://CLAIM/PATH, or copy the file to a claim and set job.data to pvc://CLAIM/FILE."
        )
        raise refused("spec.job.data", "NoVolume", message, remedy)
    return Parcel(file, size, digest, f"pvc://{claim}/{FOLDER}/{digest[:16]}/{name}")


def config_map(found: Parcel, job: Json) -> Json:
    """The ConfigMap with the rows, which goes with the job."""
    data = found.file.read_bytes()
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    metadata = {"name": found.source.name, "ownerReferences": [owner],
                "labels": {names.JOB_LABEL: job["metadata"]["name"]}}  # fmt: skip
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True}
    try:
        return body | {"data": {found.source.path: data.decode()}}
    except UnicodeDecodeError:
        return body | {"binaryData": {found.source.path: base64.b64encode(data).decode()}}


def _claim(spec: Mapping[str, Any]) -> str | None:
    """The claim of the output, which the job may write to: the one that its rows came from may be anybody's."""
    value = find(spec, OUTPUT)
    source = uris.OUTPUT.parse(value) if isinstance(value, str) else None
    return source.name if source and source.scheme is Scheme.PVC else None
