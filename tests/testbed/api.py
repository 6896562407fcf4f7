"""A small JSON client of the Kubernetes API for tests: objects are dicts, errors carry the server's own words.

Raw on purpose: a test sees exactly what the API server says, with no client library's defaults in between.
Waiting (watch.py) is done by watching, never by sleeping.
"""

import json
import select
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

Json: TypeAlias = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
TIMEOUT_S = 30
RETRIES = 10


class ApiError(Exception):
    """The API server refused; `status` is the HTTP code, `reason` and `message` are the server's own.

    causes: what it objects to, one by one, each a dict of reason, message and field.
    """

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[Json] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = tuple(causes)


class Api:
    """A client for one server and one user. Threads may share it: idle connections lie in a common pool."""

    def __init__(self, url: str, *, token: str | None = None, ca: Path | None = None) -> None:
        self.url = url
        self._where = urlsplit(url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = ssl.create_default_context(cafile=ca) if ca else None
        self._idle: deque[HTTPConnection] = deque()

    def get(self, path: str, **query: str) -> Json:
        """The object or list at a path such as /api/v1/namespaces/default/pods."""
        return self.request("GET", path, query=query)

    def find(self, path: str) -> Json | None:
        """The object at a path, or None where the server says that there is none."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return None

    def items(self, path: str, **query: str) -> list[Json]:
        """The items of the collection at a path; query: labelSelector, fieldSelector."""
        found: list[Json] = self.get(path, **query)["items"]
        return found

    def create(self, manifest: Json, **query: str) -> Json:
        """POST a manifest; its apiVersion, kind and namespace give the path. query: fieldValidation, dryRun."""
        return self.request("POST", collection_of(manifest), manifest, query=query)

    def apply(self, manifest: Json, *, manager: str = "test", **query: str) -> Json:
        """Server-side apply a manifest, taking over other managers' fields."""
        query = {"fieldManager": manager, "force": "true"} | query
        return self.request("PATCH", path_of(manifest), manifest, content_type=APPLY, query=query)

    def patch(self, path: str, change: Json, *, content_type: str = MERGE, **query: str) -> Json:
        """Patch the object, or the subresource such as .../status, at a path; by JSON merge unless told."""
        return self.request("PATCH", path, change, content_type=content_type, query=query)

    def delete(self, path: str, **query: str) -> Json:
        """Delete the object or the whole collection at a path; query: propagationPolicy, gracePeriodSeconds."""
        return self.request("DELETE", path, query=query)

    def request(
        self,
        method: str,
        path: str,
        body: Json | bytes | None = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """One request, one JSON answer; ApiError for every HTTP code from 400 up.

        A 429 is asked again when the server says so, as every client of Kubernetes does: a definition that is new,
        or a server that has just come back, says it until its storage is there.
        """
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        for left in reversed(range(RETRIES)):
            with self._borrowed() as connection:
                headers = self._headers | {"Content-Type": content_type}
                connection.request(method, _with_query(path, query), data, headers)
                response = connection.getresponse()
                text = response.read()
            if response.status != HTTPStatus.TOO_MANY_REQUESTS or not left:
                break
            time.sleep(float(response.headers.get("Retry-After") or 1))
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(response, text)
        answer: Json = json.loads(text)
        return answer

    @contextmanager
    def stream(self, path: str, *, timeout_s: float, **query: str) -> Iterator[HTTPResponse]:
        """An open answer to be read line by line (watches, followed logs), on a connection of its own."""
        connection = self._connect(timeout_s)
        try:
            connection.request("GET", _with_query(path, query), headers=self._headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response, response.read())
            yield response
        finally:
            connection.close()

    def answers(self, path: str = "/readyz") -> bool:
        """Whether the server answers 200 at a path; False while it is down."""
        try:
            with self._borrowed() as connection:
                connection.request("GET", path, headers=self._headers)
                response = connection.getresponse()
                response.read()
        except (OSError, HTTPException):
            return False
        return response.status == 200

    def close(self) -> None:
        """Close the idle connections; the client can be used again."""
        while self._idle:
            self._idle.pop().close()

    def _connect(self, timeout_s: float = TIMEOUT_S) -> HTTPConnection:
        host, port = self._where.hostname or "", self._where.port
        if self._tls:
            return HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)
        return HTTPConnection(host, port, timeout=timeout_s)

    @contextmanager
    def _borrowed(self) -> Iterator[HTTPConnection]:
        connection = self._idle_connection() or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _idle_connection(self) -> HTTPConnection | None:
        """An idle connection that the server has not closed meanwhile (a closed one is readable)."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if connection.sock and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return None


def collection_of(manifest: Json) -> str:
    """The path of the collection that a manifest belongs to; without a namespace: the cluster's."""
    version = manifest["apiVersion"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    namespace, plural = manifest["metadata"].get("namespace"), _plural(manifest["kind"])
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def path_of(manifest: Json) -> str:
    """The path of the object that a manifest, or an object read back, describes."""
    return f"{collection_of(manifest)}/{quote(manifest['metadata']['name'])}"


def _plural(kind: str) -> str:
    word = kind.lower()
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch")) else f"{word}s"


def _with_query(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _refusal(response: HTTPResponse, text: bytes) -> ApiError:
    try:
        status = json.loads(text)
        causes = (status.get("details") or {}).get("causes") or ()
        return ApiError(response.status, status.get("reason", response.reason), status.get("message", ""), causes)
    except ValueError:  # a proxy or a dying server answers in plain text
        return ApiError(response.status, response.reason, text.decode(errors="replace"))
