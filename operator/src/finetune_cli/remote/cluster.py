"""The cluster as the commands use it: jobs, their pods and related objects of one namespace."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from finetune_api.resource import names
from finetune_api.resource.names import API_VERSION, PLURAL
from finetune_kube.pages import first_page, next_page
from finetune_kube.paths import path
from finetune_plan.backends import DEFAULT as BACKEND

from .api_client import AGENT, MERGE, ApiClient, Json, connect
from .errors import ApiError, Forbidden, Invalid, NotFound, explain, invalid, invalid_manifest
from .list_watch import list_and_watch

PAGE = 500
"""Objects of one page of a list."""
LEASES = "coordination.k8s.io/v1"


class ClusterClient:
    """Objects of one namespace; of all namespaces where `all_namespaces` is set."""

    def __init__(self, client: ApiClient, namespace: str, *, namespace_given: bool = False) -> None:
        self.client, self.namespace = client, namespace
        self.namespace_given = namespace_given
        """Whether -n was given."""

    @classmethod
    def connect(cls, **options: Any) -> ClusterClient:
        """The cluster and namespace that the options of api_client.connect select. Raises InvalidInput."""
        return cls(*connect(**options), namespace_given=options.get("namespace") is not None)

    def path(self, version: str, plural: str, name: str = "", *, all_namespaces: bool = False) -> str:
        """Path of an object, or of a collection without a name."""
        return path(version, plural, "" if all_namespaces else self.namespace, name)

    def job(self, name: str) -> Json:
        """A FinetuneJob. Raises InvalidInput if it does not exist."""
        try:
            return self.client.request("GET", self.path(API_VERSION, PLURAL, name))
        except NotFound:
            raise self._no_job(name) from None

    def jobs(self, selector: str = "", *, all_namespaces: bool = False) -> list[Json]:
        """FinetuneJobs, sorted by name. Raises InvalidInput if the namespace does not exist."""
        query = {"labelSelector": selector} if selector else {}
        found = list(self.items(API_VERSION, PLURAL, query, all_namespaces=all_namespaces))
        if not found and not all_namespaces:
            self.check_namespace()
        return sorted(found, key=lambda job: (job["metadata"]["namespace"], job["metadata"]["name"]))

    def items(
        self, version: str, plural: str, query: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> Iterator[Json]:
        """The items of a collection, fetched page by page."""
        collection = self.path(version, plural, all_namespaces=all_namespaces)
        page: dict[str, str] | None = first_page(query or {}, PAGE)
        while page is not None:
            answer = self.client.request("GET", collection, query=page)
            yield from answer["items"]
            page = next_page(page, answer)

    def find(self, version: str, plural: str, name: str) -> Json | None:
        """An object, or None if it does not exist."""
        try:
            return self.client.request("GET", self.path(version, plural, name))
        except NotFound:
            return None

    def create(self, version: str, plural: str, manifest: Json, *, dry_run: bool = False) -> Json:
        """Create an object; return it as the server stores it."""
        query = {"fieldManager": AGENT, "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        return self.client.request("POST", self.path(version, plural), query=query, body=manifest)

    def create_job(self, manifest: Json, *, dry_run: bool = False) -> Json:
        """Create a FinetuneJob. Raises InvalidInput if the server refuses it, ApiError if the name is taken."""
        try:
            return self.create(API_VERSION, PLURAL, manifest, dry_run=dry_run)
        except NotFound:
            self.check_namespace()
            raise
        except Invalid as error:
            raise invalid_manifest(error, manifest["metadata"]["name"]) from None

    def patch_job(self, name: str, patch: Json) -> Json:
        """Merge a patch into a FinetuneJob. Raises InvalidInput."""
        try:
            job = self.path(API_VERSION, PLURAL, name)
            return self.client.request("PATCH", job, body=patch, content_type=MERGE)
        except NotFound:
            raise self._no_job(name) from None
        except Invalid as error:
            raise invalid_manifest(error, name) from None

    def delete(self, version: str, plural: str, name: str, *, policy: str = "Background") -> bool:
        """Delete an object; False if it does not exist."""
        try:
            self.client.request("DELETE", self.path(version, plural, name), body={"propagationPolicy": policy})
        except NotFound:
            return False
        return True

    def delete_job(self, name: str, *, policy: str) -> None:
        """Delete a FinetuneJob. Raises InvalidInput if it does not exist."""
        if not self.delete(API_VERSION, PLURAL, name, policy=policy):
            raise self._no_job(name)

    def pods(self, job: Json) -> list[Json]:
        """The training pods of a job, including those of earlier runs that still exist."""
        return list(self.items("v1", "pods", _pods_of(job)))

    def watch_pods(self, job: Json, on_lost: Callable[[str], None]) -> Iterator[list[Json]]:
        """The training pods of a job, now and after every change."""
        return list_and_watch(self.client, self.path("v1", "pods"), _pods_of(job), on_lost=on_lost)

    def watch_job(
        self, name: str, *, seconds: float | None = None, on_lost: Callable[[str], None] = lambda _: None
    ) -> Iterator[Json | None]:
        """A FinetuneJob, now and after every change; None while it does not exist."""
        return self.watch(API_VERSION, PLURAL, name, seconds=seconds, on_lost=on_lost)

    def watch(
        self, version: str, plural: str, name: str, *, seconds: float | None = None,
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Json | None]:  # fmt: skip
        """An object, now and after every change; None while it does not exist."""
        query, collection = {"fieldSelector": f"metadata.name={name}"}, self.path(version, plural)
        for items in list_and_watch(self.client, collection, query, seconds=seconds, on_lost=on_lost):
            yield items[0] if items else None

    def log(self, pod: str, **query: str) -> AbstractContextManager[Iterator[str]]:
        """Lines of a training pod's log."""
        log = f"{self.path('v1', 'pods', pod)}/log"
        return self.client.stream(log, {"container": BACKEND.container, **query}, read_seconds=None)

    def check_namespace(self) -> None:
        """Raises InvalidInput if the namespace does not exist; passes if we may not read namespaces."""
        try:
            self.client.request("GET", f"/api/v1/namespaces/{self.namespace}")
        except NotFound:
            message = f"The namespace {self.namespace} does not exist."
            remedy = "Give -n with an existing namespace; `kubectl get namespaces` lists them."
            raise invalid(f"namespace {self.namespace}", "NotFound", message, remedy) from None
        except Forbidden:
            pass
        except ApiError as error:
            raise explain(error, self.namespace) from None

    def _no_job(self, name: str) -> Exception:
        try:
            known = [job["metadata"]["name"] for job in self.jobs()]
        except ApiError:
            known = []
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        message = f"The job {name} does not exist in namespace {self.namespace}."
        return invalid(f"finetunejob {name}", "NotFound", message, f"{hint}`finetune list` lists the jobs.")


def _pods_of(job: Json) -> dict[str, str]:
    return {"labelSelector": f"{names.JOB_UID_LABEL}={job['metadata']['uid']}"}
