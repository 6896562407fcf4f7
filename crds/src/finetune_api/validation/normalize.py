"""A resource as plain JSON data, read as the API server reads it. Called by check.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .problem import Problem

_REMEDY = "Use strings, numbers, booleans, lists and maps; put quotes around dates."


def not_json(value: Any, path: str = "") -> Iterator[Problem]:
    """Values that JSON does not have, such as YAML's dates and .nan."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            below = f"{path}.{name}".lstrip(".")
            if not isinstance(name, str):
                yield Problem(below, "NotJson", f"The key {name!r} is not a string.", "Put quotes around it.")
            yield from not_json(inner, below)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from not_json(inner, f"{path}[{i}]")
    elif not _is_json(value):
        yield Problem(path, "NotJson", f"JSON has no value like {value!r}.", _REMEDY)


def _is_json(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, int) and abs(value) < 2**1023)  # bool is an int


def as_stored(value: Any) -> Any:
    """The same with keys without a value left out, and 8.0 read as 8: so do kubectl and the API server."""
    if isinstance(value, Mapping):
        return {name: as_stored(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [as_stored(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
