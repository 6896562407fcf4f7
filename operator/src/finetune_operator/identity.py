"""Identity: the key of an object, and the fields that every log line about a job has."""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune_api.resource import names

Json = dict[str, Any]


class Key(NamedTuple):
    """Namespace and name; of a FinetuneJob, or of one of its children."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def key_of(raw: Json) -> Key:
    """The key of any object."""
    metadata = raw["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def version_of(raw: Json) -> int:
    """The resourceVersion of any object, or of a list."""
    return int(raw["metadata"]["resourceVersion"])


def job_of(raw: Json) -> Key | None:
    """The job that a child's label names, or None."""
    name = (raw["metadata"].get("labels") or {}).get(names.JOB_LABEL)
    return Key(raw["metadata"].get("namespace", ""), name) if name else None


def log_fields(key: Key, uid: str = "", run: int | None = None) -> dict[str, Any]:
    """Fields of a log line about a job."""
    known = {"namespace": key.namespace, "job": key.name, "uid": uid, "run": run}
    return {"about": {k: v for k, v in known.items() if v}}
