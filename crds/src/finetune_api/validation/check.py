"""Everything that is wrong with a job, at once: what the API server would say, in words of the same meaning.

Called by `finetune validate` and by the operator (for clusters where the admission policy is absent).
tests/api/test_server.py holds both judges against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.resource.names import API_VERSION, KIND

from . import shape
from .normalize import as_stored, not_json
from .problem import Problem
from .rules import all_rules, judges
from .unknown import unknown_keys


def problems(resource: Mapping[str, Any], *, cluster: bool = True) -> list[Problem]:
    """Problems of a FinetuneJob given as plain data, sorted by path; empty if it is fine.

    cluster: whether it is meant for one. A local run has no pods, and does not ask the rules about them.
    """
    found = list(not_json(resource))
    if found:
        return sorted(found)
    stored = as_stored(resource)
    found = [_worded(problem, stored) for problem in shape.misshapen(stored, shape.root())]
    if isinstance(stored.get("spec"), Mapping):
        found += _broken_rules(stored["spec"], {p.path for p in found}, cluster=cluster)
    return sorted({*found, *unknown_keys(resource)})


def _broken_rules(spec: Mapping[str, Any], misshapen: set[str], *, cluster: bool) -> Iterator[Problem]:
    """Rules trust the shape, so those that read a misshapen key wait until it is corrected."""
    for rule in all_rules():
        if (cluster or not rule.cluster_only) and judges(rule, misshapen) and not rule.must.holds(spec):
            yield rule.problem(spec)


def _worded(problem: Problem, stored: Mapping[str, Any]) -> Problem:
    """The same, where a mistake has words of its own."""
    if problem.path in ("apiVersion", "kind"):
        return Problem(problem.path, "WrongKind", f"This is not a {KIND} of {API_VERSION}.",
                       f"Set apiVersion: {API_VERSION} and kind: {KIND}.")  # fmt: skip
    if problem.path == "metadata.name" and problem.reason != "Missing":
        return Problem(problem.path, "BadName", f"{shape.shown(stored['metadata']['name'])} is not a legal name.",
                       "Use at most 45 lower-case letters, digits and dashes, and a letter first.")  # fmt: skip
    return problem
