"""From an HTTP status and a body to what the API server means by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FailureKind(StrEnum):
    """What a client does differently."""

    NOT_FOUND = "NotFound"
    """The object does not exist."""
    UNKNOWN_RESOURCE = "UnknownResource"
    """The cluster does not serve this kind of object at all."""
    ALREADY_EXISTS = "AlreadyExists"
    CONFLICT = "Conflict"
    """The object has changed since it was read, or another precondition does not hold."""
    UNAUTHORIZED = "Unauthorized"
    """The API server does not accept the credentials."""
    FORBIDDEN = "Forbidden"
    """RBAC or admission denies the request."""
    INVALID = "Invalid"
    """The object does not fit its schema or its rules."""
    EXPIRED = "Expired"
    """The resource version or the continue token is too old: list again."""
    UNAVAILABLE = "Unavailable"
    """The API server is overloaded or failing: try again later."""
    WEBHOOK_FAILED = "WebhookFailed"
    """The API server could not ask an admission webhook, which needs an administrator."""
    OTHER = "Other"


@dataclass(frozen=True)
class RequestFailure:
    """A request that the API server did not carry out."""

    kind: FailureKind
    code: int
    """The HTTP status."""
    reason: str
    """The reason of the Status object; empty where the answer is none."""
    message: str
    causes: tuple[Mapping[str, Any], ...] = ()
    """Of an invalid object: field, reason and message of each."""


_KINDS = {
    400: FailureKind.INVALID,
    401: FailureKind.UNAUTHORIZED,
    403: FailureKind.FORBIDDEN,
    409: FailureKind.CONFLICT,
    410: FailureKind.EXPIRED,
    422: FailureKind.INVALID,
    429: FailureKind.UNAVAILABLE,
}
_WEBHOOK = "failed calling webhook"
"""How the API server begins to say so, with status 500."""
LONGEST_TEXT = 500
"""Bytes of an answer that is no Status object, such as a proxy's page."""


def request_failure(code: int, body: bytes) -> RequestFailure:
    """Read the answer of a request that failed."""
    status = _status(body)
    message = status.get("message") or body[:LONGEST_TEXT].decode(errors="replace").strip()
    causes = _details(status).get("causes") or ()
    return RequestFailure(_kind(code, status), code, str(status.get("reason") or ""), str(message), tuple(causes))


def _kind(code: int, status: Mapping[str, Any]) -> FailureKind:
    if code == 404:  # one that names no object means that the resource itself is not served
        return FailureKind.NOT_FOUND if _details(status).get("name") else FailureKind.UNKNOWN_RESOURCE
    if code == 409 and status.get("reason") == "AlreadyExists":
        return FailureKind.ALREADY_EXISTS
    if code == 500 and _WEBHOOK in str(status.get("message")):
        return FailureKind.WEBHOOK_FAILED
    return _KINDS.get(code, FailureKind.UNAVAILABLE if code >= 500 else FailureKind.OTHER)


def _details(status: Mapping[str, Any]) -> Mapping[str, Any]:
    details = status.get("details")
    return details if isinstance(details, dict) else {}


def _status(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
