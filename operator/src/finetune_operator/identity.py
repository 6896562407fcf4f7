"""Identity: the key of an object, and the fields that every log line about a job has."""

from __future__ import annotations

from typing import Any, NamedTuple

Json = dict[str, Any]


class Key(NamedTuple):
    """Namespace and name; of a FinetuneJob, or of one of its children."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Owner(NamedTuple):
    """The controller of an object, from its ownerReferences: an object of the same namespace."""

    group: str
    kind: str
    key: Key
    uid: str


def key_of(raw: Json) -> Key:
    """The key of any object; of a malformed one, as much as there is."""
    metadata = raw.get("metadata")
    found = metadata if isinstance(metadata, dict) else {}
    return Key(str(found.get("namespace", "")), str(found.get("name", "")))


def controller_of(raw: Json) -> Owner | None:
    """The owner that controls an object. Raises where its ownerReferences are malformed."""
    for each in raw["metadata"].get("ownerReferences") or ():
        if each.get("controller") is True:
            group, _, _ = each["apiVersion"].rpartition("/")
            return Owner(group, each["kind"], Key(key_of(raw).namespace, each["name"]), each["uid"])
    return None


def log_fields(key: Key, uid: str = "", run: int | None = None) -> dict[str, Any]:
    """Fields of a log line about a job."""
    known = {"namespace": key.namespace, "job": key.name, "uid": uid, "run": run}
    return {"about": {k: v for k, v in known.items() if v}}
