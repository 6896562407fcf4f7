"""Everything that can say why a job does not run, read once. Called by `finetune diagnose`."""

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

from . import places
from .cluster import LEASES, Cluster
from .errors import ApiError, UnknownResource
from .server import Json
from .views import ended, present

T = TypeVar("T")
PODS_LOOKED_INTO = 8
"""Pending pods whose events are read: the others wait for the same reasons."""


@dataclass(frozen=True)
class Seen:
    """A job and what surrounds it."""

    job: Json
    now: datetime
    pods: tuple[Json, ...] = ()
    run: Json | None = None
    """The object of the current run."""
    backend: bool = True
    """Whether the cluster knows the backend's resource."""
    events: tuple[Json, ...] = ()
    """About the run, its pending pods and pending claims."""
    leases: tuple[Json, ...] | None = None
    """Heartbeats of operators; None where we may not look."""
    claims: Mapping[str, Json | None] = field(default_factory=dict)
    config_maps: Mapping[str, Json | None] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    """What we may not look at."""


class _Look:
    """Reads what the user may read, and remembers what they may not."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.hidden: list[str] = []

    def at(self, what: str, read: Callable[[Cluster], T]) -> T | None:
        try:
            return read(self.cluster)
        except ApiError as error:
            if error.status != 403:
                raise
            self.hidden.append(what)
            return None


def look(cluster: Cluster, name: str) -> Seen:
    """Raises Refused if there is no such job."""
    job, looking = cluster.job(name), _Look(cluster)
    leases = looking.at("leases of all namespaces", _leases)
    if ended(job):
        return Seen(job, present(), leases=leases)
    pods = looking.at("pods", lambda c: c.pods(job)) or []
    backend, run = looking.at(BACKEND.plural, lambda c: _run(c, job)) or (True, None)
    spec = job["spec"]
    claims = looking.at(
        "persistentvolumeclaims", lambda c: _objects(c, "persistentvolumeclaims", places.claims(spec))
    )
    names = {config_map for config_map, _ in places.config_maps(spec)}
    config_maps = looking.at("configmaps", lambda c: _objects(c, "configmaps", names))
    subjects = [*_pending(pods)[:PODS_LOOKED_INTO], *_pending((claims or {}).values()), *([run] if run else [])]
    events = looking.at("events", lambda c: _events(c, subjects)) or []
    return Seen(
        job, present(), tuple(pods), run, backend, tuple(events), leases, claims or {}, config_maps or {},
        tuple(looking.hidden),
    )  # fmt: skip


def _pending(objects: Iterable[Json | None]) -> list[Json]:
    return [each for each in objects if each and find(each, "status.phase") == "Pending"]


def _leases(cluster: Cluster) -> tuple[Json, ...]:
    query = {"fieldSelector": f"metadata.name={names.LEASE}"}
    return tuple(cluster.items(LEASES, "leases", query, everywhere=True))


def _run(cluster: Cluster, job: Json) -> tuple[bool, Json | None]:
    """Whether the backend's resource is known here, and the object of the job's current run."""
    number = find(job, "status.run") or 1
    try:
        found = cluster.find(api_version(BACKEND), BACKEND.plural, run_name(job["metadata"]["name"], number))
    except UnknownResource:
        return False, None
    owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
    return True, found if any(o["uid"] == job["metadata"]["uid"] for o in owners) else None


def _objects(cluster: Cluster, plural: str, names: Iterable[str]) -> dict[str, Json | None]:
    return {name: cluster.find("v1", plural, name) for name in names}


def _events(cluster: Cluster, subjects: Iterable[Json]) -> list[Json]:
    uids = (each["metadata"]["uid"] for each in subjects)
    queries = ({"fieldSelector": f"involvedObject.uid={uid}"} for uid in uids)
    return [event for query in queries for event in cluster.items("v1", "events", query)]
