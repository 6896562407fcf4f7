"""JSON and streams over HTTP to one API server, with kubectl's credentials. Only cluster.py and pod_exec.py use it.

The official client provides kubeconfig, exec plugins, TLS and proxies. Its models are not used: commands show and
forward what the server answers. It is the synchronous client: a command does one thing at a time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from kubernetes import config as client_config
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as NoAnswer
from urllib3.util import parse_url

from finetune_cli.errors import InvalidInput
from finetune_kube.nesting import allow_any_depth

from .errors import Unreachable, api_error, invalid

Json = dict[str, Any]
MERGE = "application/merge-patch+json"
AGENT = "finetune-cli"
"""Our name in audit logs and managed fields."""
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
RETRIES = urllib3.Retry(total=3, status=3, status_forcelist=(429, 502, 503, 504), backoff_factor=0.2,
                        raise_on_status=False)  # fmt: skip
"""For idempotent requests; urllib3 does not repeat POST and PATCH once they were sent."""


class ApiClient:
    """A client of one API server. Its methods raise ApiError and Unreachable."""

    def __init__(self, configuration: Configuration, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warnings about retries are not for users
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
        with self._connection_errors():
            answer = self._pool.request(
                method, self.url(path, query), headers=headers, body=data,
                timeout=urllib3.Timeout(connect=self._connect_seconds, read=READ_SECONDS), retries=RETRIES,
            )  # fmt: skip
        if answer.status >= 400:
            raise api_error(answer.status, answer.data)
        found: Json = json.loads(answer.data)
        return found

    @contextmanager
    def stream(self, path: str, query: Mapping[str, str], read_seconds: float | None) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer. Raises Unreachable after `read_seconds` without data."""
        with self._connection_errors():
            answer = self._pool.request(
                "GET", self.url(path, query), headers=self.headers(), preload_content=False, retries=False,
                timeout=urllib3.Timeout(connect=self._connect_seconds, read=read_seconds),
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
        """With the current token: the client renews it where it can."""
        token = self.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        common = {"Accept": "application/json", "User-Agent": AGENT}
        return common | ({"authorization": token} if token else {})

    def _lines(self, answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
        with self._connection_errors():
            yield from lines(answer.stream(1 << 16, decode_content=True))

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        try:
            yield
        except HTTPError as error:
            raise Unreachable(self.configuration.host, _cause(error)) from None


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """The lines of a text that arrives in pieces, without their ends."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def connect(
    *, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None,
    connect_seconds: float = CONNECT_SECONDS,
) -> tuple[ApiClient, str]:  # fmt: skip
    """A client of the server and the namespace that kubectl would use with these options. Raises InvalidInput."""
    allow_any_depth()
    configuration = Configuration()
    try:
        of_context = _load(configuration, kubeconfig, context)
        _check_address(configuration.host)
    except (client_config.ConfigException, OSError, yaml.YAMLError, ValueError) as error:
        raise _unusable(kubeconfig, context, str(error)) from None
    except (TypeError, AttributeError, LookupError):  # the official client checks no types
        raise _unusable(kubeconfig, context, "the file does not have the structure of a kubeconfig") from None
    return ApiClient(configuration, connect_seconds=connect_seconds), namespace or of_context or "default"


def _load(configuration: Configuration, file: str | None, context: str | None) -> str | None:
    """The namespace of the context, or of our own pod if we run in one and there is no kubeconfig."""
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"the file {file} does not exist")
    try:
        contexts, current = client_config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    except client_config.ConfigException:
        searched = os.environ.get("KUBECONFIG") or "~/.kube/config"
        if file or context or any(Path(p).expanduser().is_file() for p in searched.split(os.pathsep)):
            raise
        return _in_cluster(configuration, searched)
    known = {c["name"]: c["context"].get("namespace") for c in contexts}
    if context and context not in known:
        raise ValueError(f"it does not exist; the contexts are {', '.join(sorted(known))}")
    client_config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=file, context=context, client_configuration=configuration, persist_config=False
    )
    found: str | None = known[context or current["name"]]
    return found


def _check_address(server: str) -> None:
    with suppress(LocationParseError):
        url = parse_url(server)
        if url.host and url.scheme in ("http", "https"):
            return
    raise ValueError(f"the server's address {server!r} is malformed; it must be https://HOST:PORT")


def _in_cluster(configuration: Configuration, searched: str) -> str | None:
    """Use the service account of our own pod."""
    try:
        client_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except client_config.ConfigException:
        message = f"the file {searched} does not exist, and this process does not run in a pod"
        raise FileNotFoundError(message) from None
    path = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return path.read_text().strip() if path.is_file() else None


def _unusable(kubeconfig: str | None, context: str | None, why: str) -> InvalidInput:
    if context:
        message = f"The context {context} cannot be used: {why}."
        return invalid("--context", "BadKubeconfig", message, "`kubectl config get-contexts` lists the contexts.")
    path = f"--kubeconfig {kubeconfig}" if kubeconfig else "kubeconfig"
    remedy = "Give --kubeconfig with a file that kubectl can use, or set KUBECONFIG."
    return invalid(path, "BadKubeconfig", f"No cluster is configured: {why.rstrip('.')}.", remedy)


def _cause(error: HTTPError) -> str:
    """The cause in a few words: urllib3 nests it, and prints the representation of its objects."""
    reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
    if isinstance(reason, NameResolutionError):
        return "its name cannot be resolved"
    if isinstance(reason, NoAnswer) and not isinstance(reason, NewConnectionError):
        return "the request timed out"
    if isinstance(reason, SSLError):
        cause = reason.args[0] if reason.args else reason
        return f"its certificate is not trusted: {getattr(cause, 'verify_message', cause)}"
    return str(reason).rpartition("] ")[2].rpartition(": ")[2].strip(" .'\")(") or type(reason).__name__
