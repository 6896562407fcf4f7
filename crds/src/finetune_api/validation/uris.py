"""Where models, rows and results live: one URI grammar for the whole product.

org/name, org/name@rev, hf://org/name@rev      Hugging Face Hub
pvc://claim/path                               a PersistentVolumeClaim of the job's namespace
configmap://name/key                           a ConfigMap of the job's namespace (small data)
s3://, gs://, az://, https://, oci://          object stores and registries
/path, ./path, path/to/file.jsonl              a file or folder inside the pod (or here, for `finetune run`)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    PATH = "path"
    HUB = "hf"
    PVC = "pvc"
    CONFIG_MAP = "configmap"
    S3 = "s3"
    GCS = "gs"
    AZURE = "az"
    HTTPS = "https"
    OCI = "oci"


@dataclass(frozen=True)
class Source:
    """A parsed URI."""

    scheme: Scheme
    name: str
    """Claim, ConfigMap, bucket, host, org/name; empty for a path."""
    path: str
    """Inside of it; for a path, the whole of it."""
    revision: str = ""


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def parse(text: str, *, model: bool = False) -> Source:
    """The source that `text` names. A bare org/name is a Hub name where a model is expected, else a path.

    Raises ValueError with a sentence that names the value and what is accepted.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        if model and _HUB_NAME.fullmatch(text):
            return _hub(text)
        return Source(Scheme.PATH, "", text)
    if scheme not in set(Scheme) - {Scheme.PATH}:
        known = ", ".join(f"{s}://" for s in Scheme if s is not Scheme.PATH)
        raise ValueError(f"{text!r} has the unknown scheme {scheme}://; known are {known} and plain paths")
    if scheme == Scheme.HUB:
        return _hub(rest)
    name, _, path = rest.partition("/")
    if not name:
        raise ValueError(f"{text!r} names nothing after {scheme}://")
    if ".." in path.split("/"):
        raise ValueError(f"{text!r} leaves its root by '..'")
    return Source(Scheme(scheme), name, path)


def _hub(text: str) -> Source:
    if not _HUB_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a Hugging Face name; write org/name or org/name@revision")
    name, _, revision = text.partition("@")
    return Source(Scheme.HUB, name, "", revision)
