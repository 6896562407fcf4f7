"""The models as a structural OpenAPI v3 schema, the only kind that a CustomResourceDefinition takes.

Called by crd.py. Structural means: no references, no unions, a type on every node. (Choices of different types, such
as true and a word, have none: the API server takes such a node if it keeps what it finds.) We ask for more: a
description on every key, and a bound on every text, list and map, because the API server refuses CEL rules
over values without bounds, and because whatever is stored in etcd should have an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
PRESERVE = "x-kubernetes-preserve-unknown-fields"
LIST_TYPE = "x-kubernetes-list-type"


class SchemaError(Exception):
    """A model declares something that a structural schema cannot express, or lacks a bound or a description."""


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`. Raises SchemaError, naming the key."""
    given = model.model_json_schema(by_alias=True)
    return _node(given, given.get("$defs", {}), model.__name__)


def _node(given: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    given = _inlined(given, defs, path)
    if "type" not in given and "enum" in given:
        return {**_copied(given, "description", "enum"), PRESERVE: True}
    return {**_copied(given, "type", "description"), **_details(given, defs, path)}


def _details(given: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    """What a node has besides its type and its description."""
    match given.get("type"):
        case "object":
            return (_section if "properties" in given else _map)(given, defs, path)
        case "array":
            bounds = {**_bounded(given, path, "maxItems"), **_copied(given, "minItems")}
            kind = {LIST_TYPE: given.get(LIST_TYPE, "atomic"), **_copied(given, "x-kubernetes-list-map-keys")}
            return {"items": _node(given["items"], defs, f"{path}[]"), **bounds, **kind}
        case "string":
            choices = [given["const"]] if "const" in given else given.get("enum")
            if choices:
                return {"enum": choices}
            return {**_bounded(given, path, "maxLength"), **_copied(given, "minLength", "pattern", "format")}
        case "integer":
            return {"format": "int64", **_bounded(given, path, "minimum", "maximum")}
        case "number":
            return _number(given)
        case "boolean":
            return {}
        case kind:
            raise SchemaError(f"{path}: a structural schema has no type {kind!r}")


def _inlined(given: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Without $ref and without `or null`; a keyword beside them wins over the same keyword inside them."""
    if "anyOf" in given:
        kinds = [each for each in given["anyOf"] if each != {"type": "null"}]
        if len(kinds) != 1:
            raise SchemaError(f"{path}: a structural schema has no unions")
        given = {**kinds[0], **{k: v for k, v in given.items() if k != "anyOf"}}
        return _inlined(given, defs, path)
    if "$ref" in given:
        target = defs[given["$ref"].rpartition("/")[2]]
        return {**target, **{k: v for k, v in given.items() if k != "$ref"}}
    return given


def _section(given: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    properties = {name: _node(inner, defs, f"{path}.{name}") for name, inner in given["properties"].items()}
    for name, node in properties.items():
        if "description" not in node:
            raise SchemaError(f"{path}.{name}: no description")
    return {"properties": properties, **_copied(given, "required", PRESERVE)}


def _map(given: Mapping[str, Any], defs: Mapping[str, Any], path: str) -> Schema:
    bound = _bounded(given, path, "maxProperties")
    values = given["additionalProperties"]
    if values is True:
        return {**bound, PRESERVE: True}
    return {**bound, "additionalProperties": _node(values, defs, f"{path}{{}}")}


def _number(given: Mapping[str, Any]) -> Schema:
    """OpenAPI v3.0 spells an open end as a bound and a flag."""
    ends: Schema = {}
    for end in ("minimum", "maximum"):
        exclusive = f"exclusive{end.capitalize()}"
        ends |= _copied(given, end)
        if exclusive in given:
            ends |= {end: given[exclusive], exclusive: True}
    return ends


def _copied(given: Mapping[str, Any], *names: str) -> Schema:
    return {name: given[name] for name in names if name in given}


def _bounded(given: Mapping[str, Any], path: str, *bounds: str) -> Schema:
    for bound in bounds:
        if bound not in given:
            raise SchemaError(f"{path}: no {bound}")
    return _copied(given, *bounds)
