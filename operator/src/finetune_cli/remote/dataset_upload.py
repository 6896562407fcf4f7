"""Where the rows of a local file go: into a ConfigMap if the file is small, else onto a volume of the job.

Names and paths are derived from the content: the same rows have the same URI, which keeps the digest of the job,
and a file that is already there is not uploaded again.
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

from .api_client import Json
from .errors import invalid
from .volume_refs import OUTPUT

AWAITING = "finetune.dev/awaits-dataset"
"""Annotation of a job that is suspended until its rows are uploaded; the value is their digest."""
CONFIG_MAP_BYTES = 900 << 10
"""Largest file for a ConfigMap, which may have 1 MiB with its metadata."""
FOLDER = "finetune-datasets"


@dataclass(frozen=True)
class DatasetUpload:
    """A local file and its destination."""

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
        """The claim that it is uploaded to; empty for a ConfigMap."""
        return self.source.name if self.source.scheme is Scheme.PVC else ""

    @property
    def pod_path(self) -> str:
        return f"{CLAIMS}/{self.source.name}/{self.source.path}"


def dataset_upload(file: Path, job: str, spec: Mapping[str, Any]) -> DatasetUpload:
    """The destination of `file`. Raises InvalidInput if it is large and the job has no volume."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    size, name = file.stat().st_size, re.sub(r"[^-._a-zA-Z0-9]+", "-", file.name)
    if size <= CONFIG_MAP_BYTES:
        return DatasetUpload(file, size, digest, f"configmap://{job}-dataset-{digest[:8]}/{name}")
    claim = _claim(spec)
    if claim is None:
        message = f"{file} has {size:,} bytes: too large for a ConfigMap, and the job has no volume to upload it to."
        remedy = (
            "Set output.uri to pvc://CLAIM/PATH, or copy the file to a claim and set job.data to pvc://CLAIM/FILE."
        )
        raise invalid("spec.job.data", "NoVolume", message, remedy)
    return DatasetUpload(file, size, digest, f"pvc://{claim}/{FOLDER}/{digest[:16]}/{name}")


def config_map(upload: DatasetUpload, job: Json) -> Json:
    """The ConfigMap with the rows, owned by the job."""
    data = upload.file.read_bytes()
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    metadata = {"name": upload.source.name, "ownerReferences": [owner],
                "labels": {names.JOB_LABEL: job["metadata"]["name"]}}  # fmt: skip
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True}
    try:
        return body | {"data": {upload.source.path: data.decode()}}
    except UnicodeDecodeError:
        return body | {"binaryData": {upload.source.path: base64.b64encode(data).decode()}}


def _claim(spec: Mapping[str, Any]) -> str | None:
    """The claim of the output: the job may write to it. Other claims of the job may belong to others."""
    value = find(spec, OUTPUT)
    source = uris.OUTPUT.parse(value) if isinstance(value, str) else None
    return source.name if source and source.scheme is Scheme.PVC else None
