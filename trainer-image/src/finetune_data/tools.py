"""Tool declarations and tool calls, both spellings of each. Called by the format files.

Declared tools may stand flat ({"name", "parameters"}) or nested ({"type": "function", "function": {...}});
chat templates expect them nested, so that is what comes out.
"""

from __future__ import annotations

from .fields import filled, mapped, optional_text, within
from .jsonl import kind
from .problems import BadRow
from .rows import Json, ToolCall


def declarations(value: list[Json]) -> tuple[dict[str, Json], ...]:
    """The declared tools, nested. Raises BadRow."""
    found = tuple(_declaration(tool, f"tools[{i}]") for i, tool in enumerate(value))
    names = [tool["function"]["name"] for tool in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadRow(f"tools[{i}] declares {name!r} a second time; keep one")
    return found


def _declaration(value: Json, where: str) -> dict[str, Json]:
    tool = mapped(value, where)
    _check_type(tool, where)
    nested = "function" in tool
    function = mapped(tool["function"], f"{where}.function") if nested else _flat(tool)
    inside = f"{where}.function" if nested else where
    filled(function.get("name"), f"{inside}.name")
    optional_text(function.get("description"), f"{inside}.description")
    if function.get("parameters") is not None:
        mapped(function["parameters"], f"{inside}.parameters")
    return {**tool, "type": "function"} if nested else {"type": "function", "function": function}


def _flat(tool: dict[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in tool.items() if key != "type"}


def _check_type(value: dict[str, Json], where: str) -> None:
    if value.get("type", "function") != "function":
        raise BadRow(f"{where}.type is {value['type']!r}; only functions are supported: write 'function'")


def calls(value: list[Json], where: str) -> tuple[ToolCall, ...]:
    """The calls of one assistant message. Raises BadRow."""
    return tuple(_call(call, f"{where}[{i}]") for i, call in enumerate(value))


def _call(value: Json, where: str) -> ToolCall:
    call = mapped(value, where)
    _check_type(call, where)
    nested = "function" in call
    function = mapped(call["function"], f"{where}.function") if nested else call
    inside = f"{where}.function" if nested else where
    name = filled(function.get("name"), f"{inside}.name")
    arguments = _arguments(function.get("arguments"), f"{inside}.arguments")
    return ToolCall(name, arguments, optional_text(call.get("id"), f"{where}.id"))


def _arguments(value: Json, where: str) -> dict[str, Json]:
    """An object, also when it is written into a string: templates print it themselves."""
    if value is None:
        raise BadRow(f"{where} is missing; write {{}} if there are none")
    found = within(value, where) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise BadRow(f"{where} is {kind(found)}, not an object; write {{...}}")
    return found
