"""Everything that is wrong with a job, at once: what the API server would say, in the same words.

Called by `finetune validate` and by the operator (for clusters where the admission policy is absent).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from .keys import _model_of, keys
from .problems import Problem
from .rules import all_rules
from .v1alpha1 import API_VERSION, KIND, FinetuneJob, Spec


def problems(resource: Mapping[str, Any]) -> list[Problem]:
    """Problems of a FinetuneJob given as plain JSON data, sorted by path; empty if it is fine."""
    spec = resource.get("spec")
    found = [*_nulls(spec, "spec"), *_shape(resource)]
    if isinstance(spec, Mapping):
        if not found:  # rules trust the shape, as they do in the API server
            found = [rule.problem(spec) for rule in all_rules() if not rule.must.holds(spec)]
        found += unknown_keys(spec)
    return sorted(set(found))


def load(resource: Mapping[str, Any]) -> FinetuneJob:
    """The typed job. Raises ValidationError if `problems` would find a wrong shape."""
    return FinetuneJob.model_validate_json(json.dumps(resource))


def unknown_keys(spec: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of the spec that nobody declared, each with the nearest known one."""
    yield from _unknown(spec, Spec, "spec")


def _unknown(value: Any, model: type[BaseModel], path: str) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        return
    fields = {f.alias or name: f for name, f in model.model_fields.items()}
    for name, inner in value.items():
        if name not in fields:
            yield _unknown_problem(f"{path}.{name}", list(fields))
            continue
        child, is_list = _model_of(fields[name].annotation)
        if child is None:
            continue
        for i, item in enumerate(inner) if is_list and isinstance(inner, list) else [(None, inner)]:
            yield from _unknown(item, child, f"{path}.{name}" + ("" if i is None else f"[{i}]"))


def _unknown_problem(path: str, siblings: list[str]) -> Problem:
    parent, _, name = path.rpartition(".")
    near = difflib.get_close_matches(name, siblings, 1)
    elsewhere = [k.path for k in keys(Spec) if k.path.rpartition(".")[2] == name]
    if near:
        remedy = f"Did you mean {parent}.{near[0]}?"
    elif elsewhere:
        remedy = f"Did you mean {elsewhere[0]}?"
    else:
        remedy = f"Remove it. Known here: {', '.join(siblings)}."
    return Problem(path, "UnknownKey", f"{name!r} is not a key of {parent}.", remedy)


def _nulls(value: Any, path: str) -> Iterator[Problem]:
    if value is None:
        yield Problem(path, "Null", "The key is there without a value.", "Give it a value, or remove it.")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if path == "spec" and name in ("tags", "metadata"):
                continue  # free sections: their content is nobody's business
            yield from _nulls(inner, f"{path}.{name}")


def _shape(resource: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        text = json.dumps(resource, allow_nan=False)
    except (TypeError, ValueError) as error:
        yield Problem("spec", "NotJson", f"The job holds a value that JSON does not have: {error}.",
                      "Use texts, numbers, booleans, lists and maps.")  # fmt: skip
        return
    try:
        FinetuneJob.model_validate_json(text)
    except ValidationError as error:
        for each in error.errors(include_url=False):
            yield _problem(each["loc"], each["type"], each["msg"], each.get("input"), each.get("ctx", {}))


def _problem(loc: tuple[int | str, ...], kind: str, text: str, value: Any, ctx: Mapping[str, Any]) -> Problem:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
    if path in ("apiVersion", "kind"):
        return Problem(path, "WrongKind", f"This is not a {KIND} of {API_VERSION}.",
                       f"Set apiVersion: {API_VERSION} and kind: {KIND}.")  # fmt: skip
    if kind == "missing":
        return Problem(path, "Missing", "The key is required.", "Set it.")
    if kind == "enum":
        return Problem(path, "UnknownValue", f"{value!r} is not one of {ctx['expected']}.", "Choose one of these.")
    if path == "metadata.name":
        return Problem(path, "BadName", f"{value!r} is not a legal name.",
                       "Use at most 45 lower-case letters, digits and dashes, and a letter first.")  # fmt: skip
    remedy = f"Correct it; `finetune explain {path.removeprefix('spec.')}` says what fits."
    return Problem(path, "BadValue", f"{value!r} does not fit: {text[0].lower()}{text[1:]}.", remedy)
