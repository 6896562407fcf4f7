"""Errors of a cluster, and their messages.

ApiError and Unreachable are what requests raise. A command turns them into InvalidInput (exit code 2: the input is
wrong) or OperationFailed (exit code 1: the input is right, and the operation failed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_api.validation.problem import Problem
from finetune_cli.errors import CommandError, InvalidInput, OperationFailed
from finetune_kube import failures
from finetune_kube.failures import FailureKind, RequestFailure

INSTALL = "Install the operator with its chart, helm/finetune-operator (see docs/install.md)"
_FORBIDDEN = re.compile(r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
_DENIED = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)' with binding '[^']+' denied request: (?P<why>.*)", re.DOTALL
)


class ApiError(Exception):
    """The API server did not carry out a request."""

    def __init__(self, failure: RequestFailure) -> None:
        super().__init__(f"{failure.code} {failure.reason}: {failure.message}")
        self.failure, self.kind, self.message = failure, failure.kind, failure.message


class NotFound(ApiError):
    """The object does not exist."""


class UnknownResource(ApiError):
    """The cluster does not serve this kind of object at all."""


class AlreadyExists(ApiError):
    """An object of this name exists."""


class Forbidden(ApiError):
    """RBAC or admission denies the request."""


class Invalid(ApiError):
    """The object does not fit its schema or its rules."""


class Unavailable(ApiError):
    """The API server is overloaded or failing."""


class Unreachable(Exception):
    """The API server did not answer."""

    def __init__(self, server: str, why: str) -> None:
        super().__init__(f"{server}: {why}")
        self.server, self.why = server, why


def api_error(code: int, body: bytes) -> ApiError:
    """The error for the answer of a request that failed."""
    found = failures.request_failure(code, body)
    return _ERRORS.get(found.kind, ApiError)(found)


_ERRORS = {
    FailureKind.NOT_FOUND: NotFound,
    FailureKind.UNKNOWN_RESOURCE: UnknownResource,
    FailureKind.ALREADY_EXISTS: AlreadyExists,
    FailureKind.FORBIDDEN: Forbidden,
    FailureKind.INVALID: Invalid,
    FailureKind.UNAVAILABLE: Unavailable,
}


def failed(path: str, reason: str, message: str, remedy: str) -> OperationFailed:
    return OperationFailed([Problem(path, reason, message, remedy)])


def invalid(path: str, reason: str, message: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem(path, reason, message, remedy)])


def explain(error: ApiError | Unreachable, namespace: str) -> CommandError:
    """Message and remedy of an error that the command itself does not handle."""
    if isinstance(error, Unreachable):
        message = f"The API server {error.server} does not answer: {error.why}."
        remedy = "Check the network and `kubectl config current-context`, or give --context or --kubeconfig."
        return failed("cluster", "Unreachable", message, remedy)
    if error.kind is FailureKind.UNAUTHORIZED:
        return failed("cluster", "Unauthorized", "The API server does not accept your credentials.",
                      "Log in to the cluster again, or give --context.")  # fmt: skip
    if error.kind is FailureKind.UNKNOWN_RESOURCE:
        message = "The FinetuneJob resource is not installed in this cluster."
        return failed("cluster", "NotInstalled", message, f"{INSTALL}.")
    if error.kind is FailureKind.FORBIDDEN:
        return _forbidden(error, namespace)
    remedy = "Try again. If the error persists, show it to the administrator of the cluster."
    return failed("cluster", error.failure.reason or "Error", f"The API server answers: {error.message}", remedy)


def _forbidden(error: ApiError, namespace: str) -> CommandError:
    found = _FORBIDDEN.search(error.message)
    if found:
        where = f"namespace {namespace}" if namespace else "all namespaces"
        message = f"{found['user']} may not {found['verb']} {found['resource']} in {where}."
        remedy = "Ask the administrator of the cluster for this permission, or give -n or --context."
        return failed("cluster", "Forbidden", message, remedy)
    denied = _DENIED.search(error.message)
    if denied:
        return _denied(denied["policy"], denied["why"])
    return failed("cluster", "Forbidden", error.message, "Ask the administrator of the cluster.")


def _denied(policy: str, why: str) -> InvalidInput:
    remedy = "Change the job to comply with the policy, or ask the administrator of the cluster."
    return invalid(f"policy {policy}", "Denied", f"A policy of the cluster denies the job: {why.strip()}", remedy)


def invalid_manifest(error: ApiError, name: str) -> InvalidInput:
    """A job that the server refuses as invalid: every cause with its path."""
    denied = _DENIED.search(error.message)
    if denied:
        return _denied(denied["policy"], denied["why"])
    causes = [c for c in error.failure.causes if c.get("field") and c["field"] != "<nil>"]
    if not causes:
        return invalid(name, error.failure.reason, error.message, "Correct the job.")
    return InvalidInput([_problem(cause) for cause in causes])


def _problem(cause: Mapping[str, Any]) -> Problem:
    key = cause["field"].removeprefix("spec.")
    remedy = f"See `finetune explain {key}`." if cause["field"].startswith("spec.") else "Correct it."
    return Problem(cause["field"], cause.get("reason") or "Invalid", f"{cause['message']}", remedy)
