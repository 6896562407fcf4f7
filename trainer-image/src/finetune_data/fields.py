"""Checks of a single JSON value, shared by the formats. `where` is its path in the row, for messages."""

from __future__ import annotations

from .jsonl import json_type, value_of
from .problems import InvalidRow
from .rows import Json


def as_text(value: Json, where: str) -> str:
    """`value`, which must be a string."""
    if not isinstance(value, str):
        raise InvalidRow(f"{where} is {json_type(value)}, not a string; write it in quotes")
    return value


def optional_text(value: Json, where: str) -> str | None:
    return None if value is None else as_text(value, where)


def required_text(value: Json, where: str) -> str:
    """`value`, which must be a non-blank string."""
    if value is None:
        raise InvalidRow(f"{where} is missing; write it as a string")
    if not as_text(value, where).strip():
        raise InvalidRow(f"{where} is empty; write it as a string")
    return str(value)


def as_list(value: Json, where: str) -> list[Json]:
    """`value`, which must be a list, null, or a string that contains a JSON list.

    Tables without nested columns store lists as such strings.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = nested_json(value, where)
    if not isinstance(value, list):
        raise InvalidRow(f"{where} is {json_type(value)}, not a list; write [...]")
    return value


def as_object(value: Json, where: str) -> dict[str, Json]:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise InvalidRow(f"{where} is {json_type(value)}, not an object; write {{...}}")
    return value


def nested_json(value: str, where: str) -> Json:
    """The JSON value in the string at `where`."""
    try:
        return value_of(value)
    except InvalidRow as problem:
        reason = str(problem).split("; ")[0].removeprefix("invalid JSON: ")
        raise InvalidRow(
            f"{where} is a string with invalid JSON ({reason}); write valid JSON in the string"
        ) from None
