"""A snapshot of a job and everything that can explain why it does not run. Called by `finetune diagnose`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from finetune_api.resource import names
from finetune_api.resource.names import run_name
from finetune_api.validation.predicates import find
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.backends.protocol import api_version

from . import volume_refs
from .api_client import Json
from .cluster import LEASES, ClusterClient
from .errors import Forbidden, UnknownResource
from .views import has_ended, now

T = TypeVar("T")
MAX_PODS = 8
"""Pending pods whose events are read: the others are pending for the same reasons."""


@dataclass(frozen=True)
class Snapshot:
    """A job and the objects around it."""

    job: Json
    now: datetime
    pods: tuple[Json, ...] = ()
    run: Json | None = None
    """The object of the current run."""
    backend: bool = True
    """Whether the cluster serves the backend's resource."""
    events: tuple[Json, ...] = ()
    """Of the run, its pending pods and pending claims."""
    leases: tuple[Json, ...] | None = None
    """Heartbeats of operators; None where they may not be read."""
    claims: Mapping[str, Json | None] = field(default_factory=dict)
    config_maps: Mapping[str, Json | None] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    """What may not be read."""


def take(cluster: ClusterClient, name: str) -> Snapshot:
    """Raises InvalidInput if the job does not exist."""
    job, hidden = cluster.job(name), list[str]()

    def read(what: str, request: Callable[[], T]) -> T | None:
        try:
            return request()
        except Forbidden:
            hidden.append(what)
            return None

    leases = read("leases of all namespaces", lambda: _leases(cluster))
    if has_ended(job):
        return Snapshot(job, now(), leases=leases)
    pods = read("pods", lambda: cluster.pods(job)) or []
    backend, run = read(BACKEND.plural, lambda: _run(cluster, job)) or (True, None)
    claim_names = volume_refs.claims(job["spec"])
    claims = read(
        "persistentvolumeclaims", lambda: _objects(cluster, "persistentvolumeclaims", claim_names)
    )  # fmt: skip
    map_names = {name for name, _ in volume_refs.config_maps(job["spec"])}
    config_maps = read("configmaps", lambda: _objects(cluster, "configmaps", map_names))
    subjects = [*_pending(pods)[:MAX_PODS], *_pending((claims or {}).values()), *([run] if run else [])]
    events = read("events", lambda: _events(cluster, subjects)) or []
    return Snapshot(
        job, now(), tuple(pods), run, backend, tuple(events), leases, claims or {}, config_maps or {},
        tuple(hidden),
    )  # fmt: skip


def _pending(objects: Iterable[Json | None]) -> list[Json]:
    return [each for each in objects if each and find(each, "status.phase") == "Pending"]


def _leases(cluster: ClusterClient) -> tuple[Json, ...]:
    query = {"fieldSelector": f"metadata.name={names.LEASE}"}
    return tuple(cluster.items(LEASES, "leases", query, all_namespaces=True))


def _run(cluster: ClusterClient, job: Json) -> tuple[bool, Json | None]:
    """Whether the cluster serves the backend's resource, and the object of the job's current run."""
    number = find(job, "status.run") or 1
    try:
        found = cluster.find(api_version(BACKEND), BACKEND.plural, run_name(job["metadata"]["name"], number))
    except UnknownResource:
        return False, None
    owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
    return True, found if any(o["uid"] == job["metadata"]["uid"] for o in owners) else None


def _objects(cluster: ClusterClient, plural: str, names: Iterable[str]) -> dict[str, Json | None]:
    return {name: cluster.find("v1", plural, name) for name in names}


def _events(cluster: ClusterClient, subjects: Iterable[Json]) -> list[Json]:
    uids = (each["metadata"]["uid"] for each in subjects)
    queries = ({"fieldSelector": f"involvedObject.uid={uid}"} for uid in uids)
    return [event for query in queries for event in cluster.items("v1", "events", query)]
