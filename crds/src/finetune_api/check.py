"""Everything that is wrong with a job, at once: what the API server would say, in words of the same meaning.

Called by `finetune validate` and by the operator (for clusters where the admission policy is absent).
tests/api/test_server.py holds both judges against each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .plain import as_stored, not_json
from .problems import Problem
from .rules import all_rules, judges
from .unknown import unknown_keys
from .v1alpha1 import API_VERSION, KIND, FinetuneJob


def problems(resource: Mapping[str, Any]) -> list[Problem]:
    """Problems of a FinetuneJob given as plain data, sorted by path; empty if it is fine."""
    found = list(not_json(resource))
    if found:
        return sorted(found)
    stored = as_stored(resource)
    found = list(_shape(stored))
    if isinstance(stored.get("spec"), Mapping):
        found += _broken_rules(stored["spec"], {p.path for p in found})
    return sorted({*found, *unknown_keys(resource)})


def load(resource: Mapping[str, Any]) -> FinetuneJob:
    """The typed job. Raises ValidationError if `problems` would find a wrong shape."""
    return FinetuneJob.model_validate_json(json.dumps(as_stored(resource)))


def _broken_rules(spec: Mapping[str, Any], misshapen: set[str]) -> Iterator[Problem]:
    """Rules trust the shape, so those that read a misshapen key wait until it is mended."""
    for rule in all_rules():
        if judges(rule, misshapen) and not rule.must.holds(spec):
            yield rule.problem(spec)


def _shape(stored: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        FinetuneJob.model_validate_json(json.dumps(stored))
    except ValidationError as error:
        for each in error.errors(include_url=False):
            if not _miscounted(each):
                yield _problem(each["loc"], each["type"], each.get("input"), each.get("ctx", {}))


def _miscounted(error: ErrorDetails) -> bool:
    """pydantic counts the entries of a list that fit; those that do not have errors of their own."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _problem(loc: tuple[int | str, ...], kind: str, value: Any, bounds: Mapping[str, Any]) -> Problem:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if path in ("apiVersion", "kind"):
        return Problem(path, "WrongKind", f"This is not a {KIND} of {API_VERSION}.",
                       f"Set apiVersion: {API_VERSION} and kind: {KIND}.")  # fmt: skip
    if kind == "missing":
        return Problem(path, "Missing", "The key is required.", "Set it.")
    if path == "metadata.name":
        return Problem(path, "BadName", f"{_shown(value)} is not a legal name.",
                       "Use at most 45 lower-case letters, digits and dashes, and a letter first.")  # fmt: skip
    remedy = f"Correct it; `finetune explain {path.removeprefix('spec.')}` says what fits."
    if kind == "enum":
        return Problem(path, "UnknownValue", f"{_shown(value)} is not one of {bounds['expected']}.", remedy)
    expected = _EXPECTED[kind].format(**as_stored(bounds))
    return Problem(path, "BadValue", f"{_shown(value)} does not fit: {expected}.", remedy)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_EXPECTED = {
    "string_type": "it must be a text",
    "int_type": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a map",
    "model_type": "it must be a map",
    "string_too_short": "it must have {min_length} or more characters",
    "string_too_long": "it may have at most {max_length} characters",
    "string_pattern_mismatch": "it must match {pattern}",
    "too_short": "it must have {min_length} or more entries",
    "too_long": "it may have at most {max_length} entries",
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it may be at most {le}",
}
"""What the judge of shapes asks for, by its own names of mistakes; these are all that our models can raise."""
