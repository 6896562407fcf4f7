"""Describes a node of the schema: its type and bounds, as a person reads them. Called by reference.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Node = Mapping[str, Any]


def describe_schema(node: Node) -> str:
    """For example `number, more than 0, at most 1`."""
    return ", ".join(_KINDS[node["type"]](node))


def _object(node: Node) -> list[str]:
    if "properties" in node:
        return ["section"]
    values = node.get("additionalProperties")
    return [f"map of up to {node['maxProperties']} entries" + (f" ({describe_schema(values)})" if values else "")]


def _array(node: Node) -> list[str]:
    least = f"{node['minItems']} to " if "minItems" in node else "up to "
    return [f"list of {least}{node['maxItems']} entries ({describe_schema(node['items'])})"]


def _string(node: Node) -> list[str]:
    if "enum" in node:
        return [" or ".join(node["enum"])]
    least = f"{node['minLength']} to" if "minLength" in node else "up to"
    pattern = [f"matching `{node['pattern']}`"] if "pattern" in node else []
    return ["string", f"{least} {node['maxLength']} characters", *pattern]


def _integer(node: Node) -> list[str]:
    return ["integer", f"{node['minimum']} to {node['maximum']}"]


def _number(node: Node) -> list[str]:
    low = ("more than" if node.get("exclusiveMinimum") else "at least", node.get("minimum"))
    high = ("less than" if node.get("exclusiveMaximum") else "at most", node.get("maximum"))
    return ["number", *(f"{relation} {bound:g}" for relation, bound in (low, high) if bound is not None)]


def _boolean(_: Node) -> list[str]:
    return ["true or false"]


_KINDS: Mapping[str, Callable[[Node], list[str]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
}
