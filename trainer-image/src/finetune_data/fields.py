"""Small checks of one JSON value at one place, shared by the format files."""

from __future__ import annotations

from .jsonl import kind, value_of
from .problems import BadRow
from .rows import Json


def text(value: Json, where: str) -> str:
    """`value`, which must be a string."""
    if not isinstance(value, str):
        raise BadRow(f"{where} is {kind(value)}, not a string; write it in quotes")
    return value


def optional_text(value: Json, where: str) -> str | None:
    return None if value is None else text(value, where)


def filled(value: Json, where: str) -> str:
    """`value`, which must be a string with something in it."""
    if value is None:
        raise BadRow(f"{where} is missing; write it as a string")
    if not text(value, where).strip():
        raise BadRow(f"{where} is empty; write it as a string")
    return str(value)


def listed(value: Json, where: str) -> list[Json]:
    """`value`, which must be a list, be absent, or be a string with a list in it.

    The string is how tables without nested columns keep a list.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = within(value, where)
    if not isinstance(value, list):
        raise BadRow(f"{where} is {kind(value)}, not a list; write [...]")
    return value


def mapped(value: Json, where: str) -> dict[str, Json]:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise BadRow(f"{where} is {kind(value)}, not an object; write {{...}}")
    return value


def within(value: str, where: str) -> Json:
    """The JSON value inside of the string at `where`."""
    try:
        return value_of(value)
    except BadRow as problem:
        reason = str(problem).split("; ")[0].removeprefix("not JSON: ")
        raise BadRow(f"{where} is a string of broken JSON ({reason}); write valid JSON in it") from None
