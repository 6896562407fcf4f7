"""All problems of a job at once: those that the API server would report, with messages of the same meaning.

Called by `finetune validate` and by the operator (for clusters where the admission policy is absent).
tests/api/test_server.py compares both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.resource.names import API_VERSION, KIND

from . import shape
from .normalize import as_stored, not_json
from .problem import Problem
from .rules import all_rules, applies
from .unknown import unknown_keys


def problems(resource: Mapping[str, Any], *, cluster: bool = True) -> list[Problem]:
    """Problems of a FinetuneJob given as plain data, sorted by path; empty if it is valid.

    cluster: whether it will run on one. A local run has no pods, so rules about pods are skipped.
    """
    found = list(not_json(resource))
    if found:
        return sorted(found)
    stored = as_stored(resource)
    found = [_specific(problem, stored) for problem in shape.shape_problems(stored, shape.root())]
    if isinstance(stored.get("spec"), Mapping):
        found += _broken_rules(stored["spec"], {p.path for p in found}, cluster=cluster)
    return sorted({*found, *unknown_keys(resource)})


def _broken_rules(spec: Mapping[str, Any], malformed: set[str], *, cluster: bool) -> Iterator[Problem]:
    """Rules rely on the shape, so those that read a malformed key are skipped until it is corrected."""
    for rule in all_rules():
        if (cluster or not rule.cluster_only) and applies(rule, malformed) and not rule.must.holds(spec):
            yield rule.problem(spec)


def _specific(problem: Problem, stored: Mapping[str, Any]) -> Problem:
    """The problem with a more specific message, where there is one."""
    if problem.path in ("apiVersion", "kind"):
        return Problem(problem.path, "WrongKind", f"This is not a {KIND} of {API_VERSION}.",
                       f"Set apiVersion: {API_VERSION} and kind: {KIND}.")  # fmt: skip
    if problem.path == "metadata.name" and problem.reason != "Missing":
        return Problem(problem.path, "BadName", f"{shape.quote(stored['metadata']['name'])} is not a legal name.",
                       "Use at most 45 lower-case letters, digits and dashes, and a letter first.")  # fmt: skip
    return problem
