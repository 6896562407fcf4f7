"""JSON over HTTP to the API server: login, timeouts, rate limit and retries. Only cluster.py calls it.

The official client brings configuration, login and the connection pool; its models are left out, because
parsing pods into them takes ten times as long as everything that we do with a pod.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config as client_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from finetune_api.resource import names
from finetune_kube.failures import FailureKind, RequestFailure, request_failure

from . import metrics
from .errors import (
    AlreadyExists,
    BackendMissing,
    ClusterError,
    Conflict,
    NotFound,
    Refused,
    Unavailable,
    WebhookFailed,
)
from .identity import Json
from .settings import Settings

JSON = "application/json"
MERGE = "application/merge-patch+json"
"""Of every patch."""
ATTEMPTS = 5
BACKOFF = (0.2, 5.0)
"""Seconds before the second attempt, and at most; doubled in between, and jittered."""
LONGEST_RETRY_AFTER = 30.0
"""Seconds between two attempts, whatever the server asks for."""
CONNECT_TIMEOUT = 10.0


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Where the API server is and how to log in: a given kubeconfig, the service account, or kubectl's own."""
    # Without looking for a proxy in the environment, which costs a thread per request and which kopf's watches do
    # not do either; a kubeconfig may name one.
    found = Configuration(client_session_kwargs={"trust_env": False})
    if kubeconfig is None:
        try:
            client_config.load_incluster_config(found)  # type: ignore[no-untyped-call]
        except client_config.ConfigException:
            pass
        else:
            return found
    await client_config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(kubeconfig) if kubeconfig else None, client_configuration=found, persist_config=False
    )
    return found


class RateLimiter:
    """A token bucket: `burst` requests at once, `rate` per second in the long run."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = float(burst), time.monotonic()

    async def wait(self) -> None:
        """Return when the next request may be sent. Tokens may run into debt, which makes waiters queue up."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)


class Transport:
    """One connection pool to one API server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limiter = RateLimiter(settings.requests_per_second, settings.request_burst)
        self._client: ApiClient | None = None

    async def request(  # noqa: PLR0913
        self, verb: str, resource: str, path: str, *, query: Mapping[str, str] | None = None,
        body: Json | None = None, accept: str = JSON, once_in_seconds: float | None = None,
    ) -> bytes:  # fmt: skip
        """The answer's body. verb and resource are RBAC terms, for metrics. Raises ClusterError.

        once_in_seconds: one attempt with this time-out; None: several, each with the usual one.
        """
        url = f"{path}?{urlencode(query)}" if query else path
        attempts, seconds = (
            (1, once_in_seconds) if once_in_seconds else (ATTEMPTS, self._settings.request_timeout_seconds)
        )
        for attempt in range(1, attempts + 1):
            await self._limiter.wait()
            status, pause, data = await self._once(verb, url, body, accept, seconds)
            metrics.REQUESTS.labels(verb=verb, resource=resource, code=str(status or "none")).inc()
            if 200 <= status < 300:
                return data
            failure = request_failure(status, data)
            if status == 401:
                await self.close()  # the token has changed: log in again
            elif failure.kind in _ERRORS or (status not in (0, 429) and status < 500):
                raise _error(failure)
            if attempt < attempts:
                await asyncio.sleep(max(pause, _backoff(attempt)))
        raise Unavailable(f"{verb} {resource}: {status or 'no answer'} {failure.message}")

    async def close(self) -> None:
        client, self._client = self._client, None
        if client:
            await client.close()  # type: ignore[no-untyped-call]

    async def _once(
        self, verb: str, url: str, body: Json | None, accept: str, seconds: float
    ) -> tuple[int, float, bytes]:
        """HTTP status (0: none), seconds that the server asks us to wait, and the body."""
        try:
            client = await self._login()
            content_type = MERGE if verb == "patch" else JSON
            headers = {"Content-Type": content_type, "Accept": accept, "User-Agent": names.FIELD_MANAGER}
            await client.update_params_for_auth(headers, [], ["BearerToken"], url, verb, body)
            host, timeout = (
                client.configuration.host,
                aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT),
            )
            answer = await client.rest_client.request(  # type: ignore[no-untyped-call]
                _METHODS[verb], f"{host}{url}", headers=headers, body=body, _request_timeout=timeout
            )
            data: bytes = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return 0, 0.0, ": ".join(filter(None, (type(error).__name__, str(error)))).encode()
        return int(answer.status), _retry_after(answer.headers.get("Retry-After")), data

    async def _login(self) -> ApiClient:
        if self._client is None:
            self._client = ApiClient(await load_configuration(self._settings.kubeconfig))
        return self._client


_METHODS = {"get": "GET", "list": "GET", "create": "POST", "patch": "PATCH", "delete": "DELETE"}


def _retry_after(header: str | None) -> float:
    return min(float(header), LONGEST_RETRY_AFTER) if header and header.isdigit() else 0.0


def _backoff(attempt: int) -> float:
    first, most = BACKOFF
    pause: float = min(most, first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
    return pause


def _error(failure: RequestFailure) -> ClusterError:
    """The error for an answer that another attempt would not change."""
    return _ERRORS.get(failure.kind, Refused)(failure.message)


_ERRORS: Mapping[FailureKind, type[ClusterError]] = {
    FailureKind.NOT_FOUND: NotFound,
    FailureKind.UNKNOWN_RESOURCE: BackendMissing,
    FailureKind.ALREADY_EXISTS: AlreadyExists,
    FailureKind.CONFLICT: Conflict,
    FailureKind.WEBHOOK_FAILED: WebhookFailed,
}
