"""Problems of the claims and ConfigMaps that a job names. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.resource.conditions import PODS_READY
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem

from . import volume_refs
from .snapshot import Snapshot
from .views import condition_is_true


def claims(snapshot: Snapshot) -> Iterator[Problem]:
    """Claims that are missing or not bound, while pods are not ready."""
    if condition_is_true(snapshot.job, PODS_READY):
        return
    for claim, key in volume_refs.claims(snapshot.job["spec"]).items():
        if claim in snapshot.claims:
            yield from _claim(snapshot, claim, key)


def config_maps(snapshot: Snapshot) -> Iterator[Problem]:
    """ConfigMaps that are missing or lack the key, while pods are not ready."""
    if condition_is_true(snapshot.job, PODS_READY):
        return
    for (name, item), key in volume_refs.config_maps(snapshot.job["spec"]).items():
        if name in snapshot.config_maps:
            yield from _config_map(snapshot, name, item, key)


def _config_map(snapshot: Snapshot, name: str, item: str, key: str) -> Iterator[Problem]:
    path, found = f"configmap {name}", snapshot.config_maps[name]
    if found is None:
        message = f"The ConfigMap {name}, which spec.{key} names, does not exist."
        yield Problem(path, "NotFound", message, "Create it; the pods then start automatically.")
        return
    items = {**_section(found, "data"), **_section(found, "binaryData")}
    if item not in items:
        message = f"The ConfigMap {name} has no key {item}. Its keys: {', '.join(sorted(items)) or 'none'}."
        yield Problem(path, "NotFound", message, f"Correct spec.{key}, or add the key.")


def _claim(snapshot: Snapshot, claim: str, key: str) -> Iterator[Problem]:
    path, found = f"persistentvolumeclaim {claim}", snapshot.claims[claim]
    if found is None:
        message = f"The claim {claim}, which spec.{key} names, does not exist."
        yield Problem(path, "NotFound", message, "Create it, or correct the name; the pods then start automatically.")
        return
    if find(found, "status.phase") == "Bound":
        return
    events = [e for e in snapshot.events if e["involvedObject"].get("uid") == found["metadata"]["uid"]]
    if any(e["reason"] == "WaitForFirstConsumer" for e in events):
        return  # it is bound when its first pod is scheduled, and what prevents that is reported for the pod
    cause = f": {events[-1]['message']}" if events else "."
    remedy = f"Check its storage class and size: kubectl describe pvc {claim}"
    yield Problem(path, "ClaimPending", f"The claim {claim} is not bound to a volume{cause}", remedy)


def _section(found: dict[str, object], name: str) -> dict[str, object]:
    section = found.get(name)
    return section if isinstance(section, dict) else {}
