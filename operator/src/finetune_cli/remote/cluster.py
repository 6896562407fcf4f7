"""The cluster as the verbs use it: jobs, their pods and what surrounds them, in one namespace."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from finetune_api.resource import names
from finetune_api.resource.names import API_VERSION, PLURAL
from finetune_plan.backends import DEFAULT as BACKEND

from .errors import ApiError, NotFound, invalid, refused, told
from .server import AGENT, MERGE, Json, Login, Server, connect
from .watching import states

PAGE = "500"
LEASES = "coordination.k8s.io/v1"


class Cluster:
    """Objects of one namespace, or of all where `everywhere` is asked for."""

    def __init__(self, server: Server, namespace: str, *, asked: bool = False) -> None:
        self.server, self.namespace = server, namespace
        self.asked = asked
        """Whether the namespace was given as an option."""

    @classmethod
    def of(cls, login: Login, **settings: Any) -> Cluster:
        """Where the options and the kubeconfig lead. Raises Refused."""
        return cls(*connect(login, **settings), asked=login.namespace is not None)

    def path(self, version: str, plural: str, name: str = "", *, everywhere: bool = False) -> str:
        """Path of an object, or of a collection where no name is given."""
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        where = "" if everywhere else f"/namespaces/{self.namespace}"
        return f"{root}{where}/{plural}{f'/{name}' if name else ''}"

    def job(self, name: str) -> Json:
        """A FinetuneJob. Raises Refused where there is none."""
        try:
            return self.server.request("GET", self.path(API_VERSION, PLURAL, name))
        except NotFound:
            raise self._no_job(name) from None

    def jobs(self, selector: str = "", *, everywhere: bool = False) -> list[Json]:
        """FinetuneJobs by name. Raises Refused where the namespace is not there."""
        query = {"labelSelector": selector} if selector else {}
        found = list(self.items(API_VERSION, PLURAL, query, everywhere=everywhere))
        if not found and not everywhere:
            self.check_namespace()
        return sorted(found, key=lambda job: (job["metadata"]["namespace"], job["metadata"]["name"]))

    def items(
        self, version: str, plural: str, query: Mapping[str, str] | None = None, *, everywhere: bool = False
    ) -> Iterator[Json]:
        """The items of a collection, page by page."""
        path, token = self.path(version, plural, everywhere=everywhere), ""
        while True:
            more = {"limit": PAGE} | ({"continue": token} if token else {})
            answer = self.server.request("GET", path, query={**(query or {}), **more})
            yield from answer["items"]
            token = answer["metadata"].get("continue", "")
            if not token:
                return

    def find(self, version: str, plural: str, name: str) -> Json | None:
        """An object, or None where there is none."""
        try:
            return self.server.request("GET", self.path(version, plural, name))
        except NotFound:
            return None

    def create(self, version: str, plural: str, manifest: Json, *, dry_run: bool = False) -> Json:
        """A new object as the server took it."""
        query = {"fieldManager": AGENT, "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        return self.server.request("POST", self.path(version, plural), query=query, body=manifest)

    def create_job(self, manifest: Json, *, dry_run: bool = False) -> Json:
        """A new FinetuneJob. Raises Refused with the server's own words, and ApiError where the name is taken."""
        try:
            return self.create(API_VERSION, PLURAL, manifest, dry_run=dry_run)
        except NotFound:
            self.check_namespace()
            raise
        except ApiError as error:
            if error.status in (400, 422):
                raise invalid(error, manifest["metadata"]["name"]) from None
            raise

    def patch_job(self, name: str, change: Json) -> Json:
        """Merge into a FinetuneJob. Raises Refused."""
        path = self.path(API_VERSION, PLURAL, name)
        try:
            return self.server.request("PATCH", path, body=change, content_type=MERGE)
        except NotFound:
            raise self._no_job(name) from None
        except ApiError as error:
            if error.status == 422:
                raise invalid(error, name) from None
            raise

    def delete(self, version: str, plural: str, name: str, *, policy: str = "Background") -> bool:
        """Delete an object; False where there is none."""
        try:
            self.server.request("DELETE", self.path(version, plural, name), body={"propagationPolicy": policy})
        except NotFound:
            return False
        return True

    def delete_job(self, name: str, *, policy: str) -> None:
        """Delete a FinetuneJob. Raises Refused where there is none."""
        if not self.delete(API_VERSION, PLURAL, name, policy=policy):
            raise self._no_job(name)

    def pods(self, job: Json) -> list[Json]:
        """The training pods of a job, those of earlier runs included where they still exist."""
        return list(self.items("v1", "pods", {"labelSelector": f"{names.JOB_UID_LABEL}={job['metadata']['uid']}"}))

    def pods_over_time(self, job: Json, lost: Callable[[str], None]) -> Iterator[list[Json]]:
        query = {"labelSelector": f"{names.JOB_UID_LABEL}={job['metadata']['uid']}"}
        return states(self.server, self.path("v1", "pods"), query, lost=lost)

    def job_over_time(
        self, name: str, *, seconds: float | None = None, lost: Callable[[str], None] = lambda _: None
    ) -> Iterator[Json | None]:
        """A FinetuneJob, now and after every change; None while there is none."""
        return self.object_over_time(API_VERSION, PLURAL, name, seconds=seconds, lost=lost)

    def object_over_time(
        self, version: str, plural: str, name: str, *, seconds: float | None = None,
        lost: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Json | None]:  # fmt: skip
        query = {"fieldSelector": f"metadata.name={name}"}
        for items in states(self.server, self.path(version, plural), query, seconds=seconds, lost=lost):
            yield items[0] if items else None

    def log(self, pod: str, **query: str) -> AbstractContextManager[Iterator[str]]:
        """Lines of a training pod's log."""
        path = f"{self.path('v1', 'pods', pod)}/log"
        return self.server.lines(path, {"container": BACKEND.container, **query}, silence=None)

    def check_namespace(self) -> None:
        """Raises Refused if the namespace is not there. Who may not look is not told so."""
        try:
            self.server.request("GET", f"/api/v1/namespaces/{self.namespace}")
        except NotFound:
            message = f"There is no namespace {self.namespace}."
            remedy = "Give -n with one that exists; `kubectl get namespaces` lists them."
            raise refused(f"namespace {self.namespace}", "NotFound", message, remedy) from None
        except ApiError as error:
            if error.status != 403:
                raise told(error, self.namespace) from None

    def _no_job(self, name: str) -> Exception:
        try:
            known = [job["metadata"]["name"] for job in self.jobs()]
        except ApiError:
            known = []
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        message = f"There is no job {name} in namespace {self.namespace}."
        return refused(f"finetunejob {name}", "NotFound", message, f"{hint}`finetune list` shows what there is.")
