"""A cluster as tests see it: an API client, a kubeconfig, kubectl, namespaces, service accounts.

control_plane.py makes one of our own; `existing_cluster` lets a cluster that somebody already has stand in.
"""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from testbed.api import APPLY, Api, ApiError, Json
from testbed.build import program
from testbed.process import Process
from testbed.watch import wait_for

TOKEN_S = 24 * 3600


@dataclass(frozen=True)
class Cluster:
    """A running cluster with an admin's rights. `folder` takes the files that the helpers below write."""

    api: Api
    kubeconfig: Path
    folder: Path

    def namespace(self, prefix: str = "test", labels: dict[str, str] | None = None) -> str:
        """Create a namespace with a name of its own and a default ServiceAccount, ready for pods."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        metadata: Json = {"name": name, "labels": labels or {}}
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self._ensure_service_account(name, "default")
        return name

    def service_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig that acts as a ServiceAccount (made if absent), for clients under the RBAC they ship."""
        self._ensure_service_account(namespace, name)
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request: Json = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
        answer = self.api.request("POST", path, request | {"spec": {"expirationSeconds": TOKEN_S}})
        target = self.folder / f"kubeconfig-{namespace}-{name}"
        document = json.loads(self._view())
        document["users"] = [{"name": "user", "user": {"token": answer["status"]["token"]}}]
        cluster = document["contexts"][0]["context"]["cluster"]
        context: Json = {"cluster": cluster, "user": "user", "namespace": namespace}
        document["contexts"] = [{"name": "test", "context": context}]
        document["current-context"] = "test"
        return write_private(target, json.dumps(document))

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the admin; the caller looks at returncode, stdout and stderr."""
        command = [str(program("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        # An own home: kubectl's discovery cache must not mix clusters that had the same port.
        environment = os.environ | {"HOME": str(self.folder), "KUBECACHEDIR": str(self.folder / "kubectl-cache")}
        return subprocess.run(
            command, input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def install_crd(self, crd: Path | Json) -> None:
        """Apply a CustomResourceDefinition (a file as it is, or an object) and wait until it is served."""
        text = crd.read_bytes() if isinstance(crd, Path) else json.dumps(crd).encode()
        name = _crd_name(crd, text)
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        query = {"fieldManager": "testbed", "force": "true"}
        self.api.request("PATCH", path, text, content_type=APPLY, query=query)
        wait_for(self.api, path, lambda found: found is not None and _condition(found, "Established"))

    def _ensure_service_account(self, namespace: str, name: str) -> None:
        metadata: Json = {"namespace": namespace, "name": name}
        with suppress_conflict():  # the controller manager, where one runs, makes `default` itself
            self.api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})

    def _view(self) -> str:
        done = self.kubectl("config", "view", "--raw", "--minify", "-o", "json")
        done.check_returncode()
        return done.stdout


@contextmanager
def existing_cluster(kubeconfig: Path, folder: Path) -> Iterator[Cluster]:
    """A cluster that already runs, through kubectl's proxy, which knows every way to log in.

    Nothing is cleaned up there but what the tests delete themselves.
    """
    command = [str(program("kubectl")), "--kubeconfig", str(kubeconfig), "proxy", "--port=0", "--reject-paths="]
    log = folder / "kubectl-proxy.log"
    address = re.compile(r"Starting to serve on (\S+)")

    def ready() -> bool:
        return bool(address.search(log.read_text()))

    with Process(command, log, ready=ready):
        found = address.search(log.read_text())
        assert found is not None
        api = Api(f"http://{found[1]}")
        try:
            yield Cluster(api=api, kubeconfig=kubeconfig, folder=folder)
        finally:
            api.close()


@contextmanager
def suppress_conflict() -> Iterator[None]:
    """Ignore the server's 409: the object is already there."""
    try:
        yield
    except ApiError as error:
        if error.status != 409:
            raise


def write_private(path: Path, text: str) -> Path:
    """Write a file with credentials, readable by its owner only."""
    with suppress(FileNotFoundError):
        path.unlink()
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _crd_name(crd: Path | Json, text: bytes) -> str:
    """Its metadata.name; read from a file by its shape, since parsing half a megabyte of YAML takes seconds."""
    if not isinstance(crd, Path):
        name: str = crd["metadata"]["name"]
        return name
    found = re.search(rb"^  name: (\S+)$", text, re.MULTILINE)
    if not found:
        raise ValueError(f"{crd}: no metadata.name: is it a CustomResourceDefinition?")
    return found[1].decode()


def _condition(item: Json, kind: str) -> bool:
    conditions = item.get("status", {}).get("conditions") or []
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)
