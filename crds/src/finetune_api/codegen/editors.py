"""The schema as plain JSON Schema, for editors that complete and check YAML. Called by __main__."""

from __future__ import annotations

from typing import Any

from finetune_api.resource.names import API_VERSION, DESCRIPTION, KIND, NAME_LENGTH, NAME_PATTERN
from finetune_api.resource.v1alpha1 import Spec

from .schema import Schema, structural


def json_schema() -> Schema:
    """What a person may write. Stricter than the CRD in one thing: an unknown key is an error here, because
    no admission policy follows."""
    name = {"type": "string", "maxLength": NAME_LENGTH, "pattern": NAME_PATTERN}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": KIND,
        "description": DESCRIPTION,
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": KIND},
            "metadata": {"type": "object", "required": ["name"], "properties": {"name": name}},
            "spec": _to_json_schema(structural(Spec)),
            "status": {"type": "object"},
        },
        "additionalProperties": False,
    }


def _to_json_schema(node: Any) -> Any:
    """Without Kubernetes' own keywords, and with exclusive bounds as numbers."""
    if isinstance(node, list):
        return [_to_json_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    is_section = node.get("type") == "object" and isinstance(node.get("properties"), dict)
    ends = {"minimum": "exclusiveMinimum", "maximum": "exclusiveMaximum"}
    converted = {}
    for name, value in node.items():
        if name.startswith("x-kubernetes-") or name in ends.values() or (name == "format" and value == "int64"):
            continue
        opened = ends.get(name)
        converted[opened if opened and node.get(opened) is True else name] = _to_json_schema(value)
    return converted | ({"additionalProperties": False} if is_section else {})
