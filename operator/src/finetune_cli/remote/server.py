"""JSON and streams over HTTP to one API server, logged in as kubectl is. Only cluster.py and exec.py use it.

The official client brings kubeconfig, exec plugins, TLS and proxies; its models are left out: verbs show and
pass on what the server says. It is the synchronous client, because a command line does one thing at a time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import config as client_config
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from urllib3.exceptions import HTTPError, MaxRetryError, NameResolutionError, NewConnectionError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswer

from finetune_cli.errors import Refused

from .errors import ApiError, NotFound, UnknownResource, Unreachable, refused

Json = dict[str, Any]
MERGE = "application/merge-patch+json"
AGENT = "finetune-cli"
"""Who we are in audit logs and managed fields."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
RETRIES = urllib3.Retry(total=3, status=3, status_forcelist=(429, 502, 503, 504), backoff_factor=0.2,
                        raise_on_status=False)  # fmt: skip
"""Of requests that may be repeated; urllib3 leaves POST and PATCH alone once they were sent."""


@dataclass(frozen=True)
class Login:
    """What the options -n, --context and --kubeconfig say; None where they are not given."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None


class Server:
    """One API server. Its methods raise ApiError and Unreachable."""

    def __init__(self, configuration: Configuration, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # retries and pools are nothing for people
        self.configuration = configuration
        self._pool = RESTClientObject(configuration).pool_manager
        self._connect_seconds = connect_seconds

    def request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:  # fmt: skip
        """The JSON that the server answers."""
        headers = self.headers() | ({"Content-Type": content_type} if body is not None else {})
        data = None if body is None else json.dumps(body).encode()
        with self._translated():
            answer = self._pool.request(
                method, self.url(path, query), headers=headers, body=data,
                timeout=urllib3.Timeout(connect=self._connect_seconds, read=READ_SECONDS), retries=RETRIES,
            )  # fmt: skip
        if answer.status >= 400:
            raise api_error(answer.status, answer.data)
        found: Json = json.loads(answer.data)
        return found

    @contextmanager
    def lines(self, path: str, query: Mapping[str, str], silence: float | None) -> Iterator[Iterator[str]]:
        """The lines of an answer that goes on; a silence of so many seconds ends it with Unreachable."""
        with self._translated():
            answer = self._pool.request(
                "GET", self.url(path, query), headers=self.headers(), preload_content=False, retries=False,
                timeout=urllib3.Timeout(connect=self._connect_seconds, read=silence),
            )  # fmt: skip
        try:
            if answer.status >= 400:
                raise api_error(answer.status, answer.read())
            yield self._lines(answer)
        finally:
            answer.close()

    def url(self, path: str, query: Mapping[str, str] | None = None) -> str:
        return f"{self.configuration.host}{path}{f'?{urlencode(query)}' if query else ''}"

    def headers(self) -> dict[str, str]:
        """With the token as it is now: the client renews it where it knows how."""
        token = self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        common = {"Accept": "application/json", "User-Agent": AGENT}
        return common | ({"authorization": token} if token else {})

    def _lines(self, answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
        rest = b""
        with self._translated():
            for chunk in answer.stream(1 << 16, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
        if rest:
            yield rest.decode(errors="replace")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except HTTPError as error:
            raise Unreachable(self.configuration.host, _why(error)) from None


def connect(login: Login, *, connect_seconds: float = CONNECT_SECONDS) -> tuple[Server, str]:
    """The server that kubectl would talk to, and the namespace that it would use. Raises Refused."""
    configuration = Configuration()
    try:
        namespace = _load(configuration, login)
    except (client_config.ConfigException, OSError, yaml.YAMLError, ValueError) as error:
        raise _unusable(login, str(error)) from None
    return Server(configuration, connect_seconds=connect_seconds), login.namespace or namespace or "default"


def _load(configuration: Configuration, login: Login) -> str | None:
    """The namespace of the context; of a pod's own, where we run in one and no kubeconfig is there."""
    where = login.kubeconfig
    if where and not Path(where).is_file():
        raise FileNotFoundError(f"there is no file {where}")
    try:
        contexts, current = client_config.list_kube_config_contexts(where)  # type: ignore[no-untyped-call]
    except client_config.ConfigException:
        looked = os.environ.get("KUBECONFIG") or "~/.kube/config"
        if where or login.context or any(Path(path).expanduser().is_file() for path in looked.split(os.pathsep)):
            raise
        return _in_cluster(configuration, looked)
    known = {c["name"]: c["context"].get("namespace") for c in contexts}
    if login.context and login.context not in known:
        raise ValueError(f"there is none; there are {', '.join(sorted(known))}")
    client_config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=where, context=login.context, client_configuration=configuration, persist_config=False
    )
    found: str | None = known[login.context or current["name"]]
    return found


def _in_cluster(configuration: Configuration, looked: str) -> str | None:
    """As a pod's own account, where no kubeconfig is there."""
    try:
        client_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except client_config.ConfigException:
        raise FileNotFoundError(f"there is no file {looked}, and this is no pod of a cluster") from None
    return _own_namespace()


def _own_namespace() -> str | None:
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.is_file() else None


def _unusable(login: Login, why: str) -> Refused:
    if login.context:
        message = f"The context {login.context} cannot be used: {why}."
        return refused("--context", "BadKubeconfig", message, "`kubectl config get-contexts` lists what there is.")
    path = f"--kubeconfig {login.kubeconfig}" if login.kubeconfig else "kubeconfig"
    remedy = "Give --kubeconfig with a file that kubectl can use, or set KUBECONFIG."
    return refused(path, "BadKubeconfig", f"No cluster can be found: {why.rstrip('.')}.", remedy)


def api_error(status: int, data: bytes) -> ApiError:
    """The error that a body says. A 404 that names no object means that the resource itself is unknown."""
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        kind = UnknownResource if status == 404 else ApiError
        return kind(status, "", data[:500].decode(errors="replace").strip())
    details = answer.get("details") or {}
    reason, message = str(answer.get("reason") or ""), str(answer.get("message") or "")
    if status == 404:
        return (NotFound if details.get("name") else UnknownResource)(status, reason, message)
    return ApiError(status, reason, message, details.get("causes") or ())


def _why(error: HTTPError) -> str:
    """The reason in a few words: urllib3 wraps it in itself, and names objects of ours."""
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(reason, NameResolutionError):
        return "its name is not known"
    if isinstance(reason, NoAnswer) and not isinstance(reason, NewConnectionError):
        return "no answer in time"
    if isinstance(reason, SSLError):
        cause = reason.args[0] if reason.args else reason
        return f"its certificate is not trusted: {getattr(cause, 'verify_message', cause)}"
    return str(reason).rpartition("] ")[2].rpartition(": ")[2].strip(" .'\")(") or type(reason).__name__
