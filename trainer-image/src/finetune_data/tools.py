"""Tool declarations and tool calls, in both common notations. Called by the formats.

Declared tools may be flat ({"name", "parameters"}) or nested ({"type": "function", "function": {...}}); chat
templates expect them nested, so the result is nested.
"""

from __future__ import annotations

from .fields import as_object, nested_json, optional_text, required_text
from .jsonl import json_type
from .problems import InvalidRow
from .rows import Json, ToolCall


def declarations(value: list[Json]) -> tuple[dict[str, Json], ...]:
    """The declared tools, nested. Raises InvalidRow."""
    found = tuple(_declaration(tool, f"tools[{i}]") for i, tool in enumerate(value))
    names = [tool["function"]["name"] for tool in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidRow(f"tools[{i}] declares {name!r} again; keep one")
    return found


def _declaration(value: Json, where: str) -> dict[str, Json]:
    tool = as_object(value, where)
    _check_type(tool, where)
    nested = "function" in tool
    function = as_object(tool["function"], f"{where}.function") if nested else _flat(tool)
    inside = f"{where}.function" if nested else where
    required_text(function.get("name"), f"{inside}.name")
    optional_text(function.get("description"), f"{inside}.description")
    if function.get("parameters") is not None:
        as_object(function["parameters"], f"{inside}.parameters")
    return {**tool, "type": "function"} if nested else {"type": "function", "function": function}


def _flat(tool: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in tool.items() if key != "type"}


def _check_type(value: dict[str, Json], where: str) -> None:
    if value.get("type", "function") != "function":
        raise InvalidRow(f"{where}.type is {value['type']!r}; only functions are supported: write 'function'")


def calls(value: list[Json], where: str) -> tuple[ToolCall, ...]:
    """The calls of one assistant message. Raises InvalidRow."""
    return tuple(_call(call, f"{where}[{i}]") for i, call in enumerate(value))


def _call(value: Json, where: str) -> ToolCall:
    call = as_object(value, where)
    _check_type(call, where)
    nested = "function" in call
    function = as_object(call["function"], f"{where}.function") if nested else call
    inside = f"{where}.function" if nested else where
    name = required_text(function.get("name"), f"{inside}.name")
    arguments = _arguments(function.get("arguments"), f"{inside}.arguments")
    return ToolCall(name, arguments, optional_text(call.get("id"), f"{where}.id"))


def _arguments(value: Json, where: str) -> dict[str, Json]:
    """An object, also if it is in a string: templates serialise it themselves."""
    if value is None:
        raise InvalidRow(f"{where} is missing; write {{}} for a call without arguments")
    found = nested_json(value, where) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise InvalidRow(f"{where} is {json_type(found)}, not an object; write {{...}}")
    return found
