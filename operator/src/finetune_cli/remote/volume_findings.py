"""What is wrong with the claims and ConfigMaps that a job names. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.resource.conditions import PODS_READY
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem

from . import places
from .seen import Seen
from .views import is_true


def claims(seen: Seen) -> Iterator[Problem]:
    """Claims that are not there, or not bound, while pods still need them."""
    if is_true(seen.job, PODS_READY):
        return
    for claim, key in places.claims(seen.job["spec"]).items():
        if claim in seen.claims:
            yield from _claim(seen, claim, key)


def config_maps(seen: Seen) -> Iterator[Problem]:
    """ConfigMaps that are not there, or lack the key, while pods still need them."""
    if is_true(seen.job, PODS_READY):
        return
    for (name, item), key in places.config_maps(seen.job["spec"]).items():
        found = seen.config_maps.get(name, {})
        if found is None:
            message = f"spec.{key} names the ConfigMap {name}, which is not there."
            yield Problem(f"configmap {name}", "NotFound", message, "Create it; the pods then start by themselves.")
        elif name in seen.config_maps and item not in (held := {**_map(found, "data"), **_map(found, "binaryData")}):
            message = f"The ConfigMap {name} has no key {item}, only {', '.join(sorted(held)) or 'nothing'}."
            yield Problem(f"configmap {name}", "NotFound", message, f"Correct spec.{key}, or add the key.")


def _claim(seen: Seen, claim: str, key: str) -> Iterator[Problem]:
    path, found = f"persistentvolumeclaim {claim}", seen.claims[claim]
    if found is None:
        remedy = "Create it, or correct the name; the pods then start by themselves."
        yield Problem(path, "NotFound", f"spec.{key} names the claim {claim}, which is not there.", remedy)
        return
    if find(found, "status.phase") == "Bound":
        return
    about = [e for e in seen.events if e["involvedObject"].get("uid") == found["metadata"]["uid"]]
    if any(e["reason"] == "WaitForFirstConsumer" for e in about):
        return  # it is bound when its first pod is scheduled: what keeps that pod is told by itself
    why = f": {about[-1]['message']}" if about else "."
    remedy = f"Check its storage class and size: kubectl describe pvc {claim}"
    yield Problem(path, "ClaimPending", f"The claim {claim} is not bound to a volume{why}", remedy)


def _map(found: dict[str, object], part: str) -> dict[str, object]:
    held = found.get(part)
    return held if isinstance(held, dict) else {}
