"""The cluster as the operator uses it: a Protocol, which tests replace, and the real one.

Together with transport.py the only module that speaks to the API server; kopf's watches apart. The verbs here
are the operator's RBAC.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Protocol

from finetune_api.resource import names
from finetune_api.resource.names import API_VERSION, PLURAL
from finetune_kube import paths
from finetune_kube.pages import first_page, next_page
from finetune_plan.backends.protocol import Backend, api_version

from .errors import AlreadyExists, BackendMissing, NotFound
from .identity import Json, Key, key_of, version_of
from .settings import Settings
from .transport import JSON, Transport

KUEUE_VERSION = "kueue.x-k8s.io/v1beta2"
WORKLOADS_PLURAL = "workloads"
CLAIMS_PLURAL = "persistentvolumeclaims"
PAGE = 100
"""Objects of one page of a list, which anybody may make as large as the API server takes them; so are annotations."""
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
LOG_LINES = 1000
LOG_BYTES = 1 << 20


class Kind(StrEnum):
    """What the operator lists and watches, Leases apart."""

    JOBS = "jobs"
    RUNS = "runs"
    PODS = "pods"
    EVENTS = "events"
    """Those by which the backend reports that pods were refused."""


class Cluster(Protocol):
    """What the operator asks of Kubernetes. All methods raise errors.ClusterError."""

    async def get_job(self, key: Key) -> Json | None:
        """The FinetuneJob as it is now, or None."""

    async def get_run(self, key: Key) -> Json | None:
        """The object of a run as it is now, or None."""

    def pages(self, kind: Kind, of: Key | None = None) -> AsyncIterator[tuple[list[Json], int]]:
        """All of a kind, or those of all jobs of one name in a namespace, by pages, with the version of the list.

        Where the backend's resource is not served, there are no runs."""

    def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        """Likewise, of all of a kind the versions alone: the server sends metadata only."""

    async def read(self, kind: Kind, key: Key) -> Json | None:
        """One object of a kind as it is now, or None. By a list: there is no right to get pods or events."""

    async def create_run(self, manifest: Json) -> Json:
        """Create the object of a run. Raises AlreadyExists."""

    async def delete_run(self, key: Key, uid: str) -> Json | None:
        """Delete the object of a run; it is gone when its pods are. As it is now, or None if it is gone already."""

    async def delete_pod(self, key: Key, uid: str, version: int) -> Json | None:
        """Delete a pod by force, as it is in that version. What is left of it, or None. Raises Conflict."""

    async def patch_status(self, key: Key, patch: Json) -> Json:
        """Merge into the status of a FinetuneJob. Raises Conflict if metadata.resourceVersion is old."""

    async def workload(self, namespace: str, run_uid: str) -> Json | None:
        """Kueue's Workload of a run; None if there is none, or no Kueue."""

    async def claim(self, key: Key) -> Json | None:
        """A PersistentVolumeClaim; None if there is no such claim."""

    def nodes(self, labels: Sequence[str]) -> AsyncIterator[Json]:
        """All nodes with one of these labels, each once."""

    async def annotate_claim(self, key: Key, annotation: str, text: str) -> None:
        """Set one annotation of a PersistentVolumeClaim. Raises NotFound."""

    async def read_log(self, key: Key, since_seconds: int | None) -> str:
        """The end of a training pod's log. One attempt, in a few seconds: the caller has a schedule of its own."""

    async def create_event(self, event: Json) -> None:
        """Create an Event; one that exists is fine."""

    async def write_heartbeat(self, key: Key, holder: str, time: str) -> None:
        """Write a heartbeat into our Lease."""

    async def serves(self, kind: Kind) -> bool:
        """Whether this cluster knows the kind of jobs, or of runs."""


class KubernetesCluster:
    """The cluster behind the API server."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._http, self._backend = Transport(settings), backend
        self._namespace, self._log_seconds = settings.watch_namespace, settings.progress_timeout_seconds
        self._resources = {
            Kind.JOBS: (API_VERSION, PLURAL),
            Kind.RUNS: (api_version(backend), backend.plural),
            Kind.PODS: ("v1", "pods"),
            Kind.EVENTS: ("v1", "events"),
        }

    async def close(self) -> None:
        await self._http.close()

    async def get_job(self, key: Key) -> Json | None:
        return await self._find(PLURAL, _path(API_VERSION, PLURAL, key))

    async def get_run(self, key: Key) -> Json | None:
        return await self._find(self._backend.plural, self._run_path(key))

    def pages(self, kind: Kind, of: Key | None = None) -> AsyncIterator[tuple[list[Json], int]]:
        namespace, job = of or Key("", "")
        return self._pages(kind, namespace, self._selector(kind, job), JSON)

    async def versions(self, kind: Kind) -> AsyncIterator[tuple[dict[Key, int], int]]:
        async for items, version in self._pages(kind, "", self._selector(kind), METADATA):
            yield {key_of(raw): version_of(raw) for raw in items}, version

    async def read(self, kind: Kind, key: Key) -> Json | None:
        (version, plural), query = self._resources[kind], self._selector(kind)
        named = [f"metadata.name={key.name}", *filter(None, [query.get("fieldSelector")])]
        path = _path(version, plural, Key(key.namespace, ""))
        answer = await self._http.request("list", plural, path, query={**query, "fieldSelector": ",".join(named)})
        return next(iter(json.loads(answer)["items"]), None)

    def _selector(self, kind: Kind, job: str = "") -> dict[str, str]:
        if kind is Kind.JOBS:
            return {}
        if kind is Kind.EVENTS:
            return {"fieldSelector": f"reason={self._backend.refusal_reason}"}
        named = f",{names.JOB_LABEL}={job}" if job else ""
        return {"labelSelector": f"{names.JOB_UID_LABEL}{named}"}

    async def _pages(
        self, kind: Kind, namespace: str, selector: dict[str, str], accept: str
    ) -> AsyncIterator[tuple[list[Json], int]]:
        version, plural = self._resources[kind]
        path = _path(version, plural, Key(namespace or self._namespace, ""))
        query: dict[str, str] | None = first_page(selector, PAGE)
        while query is not None:
            try:
                answer = json.loads(await self._http.request("list", plural, path, query=query, accept=accept))
            except BackendMissing:
                if kind is not Kind.RUNS:
                    raise
                yield [], sys.maxsize  # a kind that is not served has no objects, of whatever version
                return
            yield answer["items"] or [], version_of(answer)  # an empty list of metadata has null
            query = next_page(query, answer)

    async def create_run(self, manifest: Json) -> Json:
        path = self._run_path(Key(manifest["metadata"]["namespace"], ""))
        query = {"fieldManager": names.FIELD_MANAGER}
        return _object(await self._http.request("create", self._backend.plural, path, query=query, body=manifest))

    async def delete_run(self, key: Key, uid: str) -> Json | None:
        # Foreground: the object stays until the last of its pods is gone, so that its absence says so.
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            answer = _object(await self._http.request("delete", self._backend.plural, self._run_path(key), body=body))
        except (NotFound, BackendMissing):
            return None
        return answer if answer["kind"] == self._backend.kind else None

    async def delete_pod(self, key: Key, uid: str, version: int) -> Json | None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid, "resourceVersion": str(version)}}
        try:
            answer = _object(await self._http.request("delete", "pods", _path("v1", "pods", key), body=body))
        except NotFound:
            return None
        return answer if answer["metadata"].get("finalizers") else None

    async def patch_status(self, key: Key, patch: Json) -> Json:
        path, query = f"{_path(API_VERSION, PLURAL, key)}/status", {"fieldManager": names.FIELD_MANAGER}
        resource = f"{PLURAL}/status"
        return _object(await self._http.request("patch", resource, path, query=query, body=patch))

    async def workload(self, namespace: str, run_uid: str) -> Json | None:
        path = _path(KUEUE_VERSION, WORKLOADS_PLURAL, Key(namespace, ""))
        # Version 0: whatever the API server has in memory.
        query = {"labelSelector": f"{names.KUEUE_JOB_UID_LABEL}={run_uid}", "resourceVersion": "0"}
        try:
            answer = json.loads(await self._http.request("list", WORKLOADS_PLURAL, path, query=query))
        except (NotFound, BackendMissing):
            return None
        return next(iter(answer["items"]), None)

    async def claim(self, key: Key) -> Json | None:
        return await self._find(CLAIMS_PLURAL, _path("v1", CLAIMS_PLURAL, key))

    async def nodes(self, labels: Sequence[str]) -> AsyncIterator[Json]:
        path = _path("v1", "nodes", Key("", ""))
        for i, label in enumerate(labels):
            selector = ",".join([label, *(f"!{earlier}" for earlier in labels[:i])])
            query: dict[str, str] | None = first_page({"labelSelector": selector}, PAGE)
            while query is not None:
                answer = json.loads(await self._http.request("list", "nodes", path, query=query))
                for raw in answer["items"]:
                    yield raw
                query = next_page(query, answer)

    async def annotate_claim(self, key: Key, annotation: str, text: str) -> None:
        body, path = {"metadata": {"annotations": {annotation: text}}}, _path("v1", CLAIMS_PLURAL, key)
        query = {"fieldManager": names.FIELD_MANAGER}
        await self._http.request("patch", CLAIMS_PLURAL, path, query=query, body=body)

    async def read_log(self, key: Key, since_seconds: int | None) -> str:
        query = {"container": self._backend.container, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES)}
        if since_seconds is not None:
            query["sinceSeconds"] = str(since_seconds)
        path = f"{_path('v1', 'pods', key)}/log"
        answer = await self._http.request("get", "pods/log", path, query=query, once_in_seconds=self._log_seconds)
        return answer.decode(errors="replace")

    async def create_event(self, event: Json) -> None:
        path = _path("v1", "events", Key(event["metadata"]["namespace"], ""))
        try:
            await self._http.request("create", "events", path, body=event)
        except AlreadyExists:
            return

    async def write_heartbeat(self, key: Key, holder: str, time: str) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": key.name, "namespace": key.namespace},
            "spec": {"holderIdentity": holder, "renewTime": time},
        }
        path = _path("coordination.k8s.io/v1", "leases", key)
        try:
            await self._http.request("patch", "leases", path, body={"spec": lease["spec"]})
        except NotFound:
            await self._http.request("create", "leases", path.rpartition("/")[0], body=lease)

    async def serves(self, kind: Kind) -> bool:
        version, plural = self._resources[kind]
        try:
            answer = json.loads(await self._http.request("get", "discovery", f"/apis/{version}"))
        except (NotFound, BackendMissing):
            return False
        return any(r["name"] == plural for r in answer["resources"])

    def _run_path(self, key: Key) -> str:
        return _path(*self._resources[Kind.RUNS], key)

    async def _find(self, resource: str, path: str) -> Json | None:
        try:
            return _object(await self._http.request("get", resource, path))
        except NotFound:
            return None


def _path(version: str, plural: str, key: Key) -> str:
    """Path of an object, or of a collection where the key has no name, or of all namespaces without one."""
    return paths.path(version, plural, key.namespace, key.name)


def _object(data: bytes) -> Json:
    found: Json = json.loads(data)
    return found
