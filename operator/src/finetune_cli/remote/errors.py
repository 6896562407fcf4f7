"""What can go wrong with a cluster, and the sentences in which people hear of it.

The API server's answers are ApiError; whoever asked turns them into Refused (exit code 2: what was asked for is
wrong) or Hindered (exit code 1: it was right and could not be done).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from finetune_api.validation.problem import Problem
from finetune_cli.errors import Refused
from finetune_cli.exit_codes import FAILED

INSTALL = "Install the operator with its chart, helm/finetune-operator (docs/install.md says how)"
_FORBIDDEN = re.compile(r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"')
_DENIED = re.compile(
    r"ValidatingAdmissionPolicy '(?P<policy>[^']+)' with binding '[^']+' denied request: (?P<why>.*)", re.DOTALL
)


class ApiError(Exception):
    """The API server said no; `status` is the HTTP code."""

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message, self.causes = status, reason, message, tuple(causes)


class NotFound(ApiError):
    """There is no such object."""


class UnknownResource(ApiError):
    """The cluster does not know this kind of object at all."""


class Unreachable(Exception):
    """The API server did not answer."""

    def __init__(self, server: str, why: str) -> None:
        super().__init__(f"{server}: {why}")
        self.server, self.why = server, why


class Hindered(Refused):
    """What was asked for is right, and could not be done."""

    exit_code = FAILED


def hindered(path: str, reason: str, message: str, remedy: str) -> Hindered:
    return Hindered([Problem(path, reason, message, remedy)])


def refused(path: str, reason: str, message: str, remedy: str) -> Refused:
    return Refused([Problem(path, reason, message, remedy)])


def told(error: ApiError | Unreachable, namespace: str) -> Refused:
    """One sentence and a remedy for an error that nobody has explained better."""
    if isinstance(error, Unreachable):
        message = f"The API server {error.server} does not answer: {error.why}."
        remedy = "Check the network and `kubectl config current-context`, or give --context or --kubeconfig."
        return hindered("cluster", "Unreachable", message, remedy)
    if error.status == 401:
        return hindered("cluster", "Unauthorized", "The API server does not know who you are.",
                        "Log in to the cluster anew, or give --context.")  # fmt: skip
    if isinstance(error, UnknownResource):
        return hindered("cluster", "NotInstalled", "This cluster does not know FinetuneJobs.", INSTALL + ".")
    if error.status == 403:
        return _forbidden(error, namespace)
    remedy = "Try again; if it stays so, show this to whoever runs the cluster."
    return hindered("cluster", error.reason or "Error", f"The API server answers: {error.message}", remedy)


def _forbidden(error: ApiError, namespace: str) -> Refused:
    found = _FORBIDDEN.search(error.message)
    if found:
        where = f"namespace {namespace}" if namespace else "all namespaces"
        message = f"{found['user']} may not {found['verb']} {found['resource']} in {where}."
        remedy = "Ask whoever runs the cluster for that right, or give -n or --context."
        return hindered("cluster", "Forbidden", message, remedy)
    denied = _DENIED.search(error.message)
    if denied:
        return policy_denial(denied["policy"], denied["why"])
    return hindered("cluster", "Forbidden", error.message, "Ask whoever runs the cluster.")


def policy_denial(policy: str, why: str) -> Refused:
    remedy = "Change the job so that the policy lets it pass, or ask whoever made the policy."
    return refused(f"policy {policy}", "Denied", f"The cluster's policy says: {why.strip()}", remedy)


def invalid(error: ApiError, file_name: str) -> Refused:
    """A job that the server does not take (422): every cause with its path."""
    denied = _DENIED.search(error.message)
    if denied:
        return policy_denial(denied["policy"], denied["why"])
    causes = [c for c in error.causes if c.get("field") and c["field"] != "<nil>"]
    if not causes:
        return refused(file_name, error.reason, error.message, "Correct the job.")
    return Refused([_problem(cause) for cause in causes])


def _problem(cause: dict[str, Any]) -> Problem:
    key = cause["field"].removeprefix("spec.")
    remedy = f"`finetune explain {key}` says what fits." if cause["field"].startswith("spec.") else "Correct it."
    return Problem(cause["field"], cause.get("reason") or "Invalid", f"{cause['message']}", remedy)
