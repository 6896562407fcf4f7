"""keys.json: the models' keys with their shapes and fates, and without descriptions. Called by __main__."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from finetune_api.resource.key_table import Fate, Node
from finetune_api.resource.keys import SpecKey, children
from finetune_api.resource.v1alpha1 import Spec

from .schema import structural

_KEYWORDS = ("type", "enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength",
         "maxLength", "pattern", "minItems", "maxItems", "maxProperties")  # fmt: skip


def text() -> str:
    """The content of keys.json."""
    return json.dumps(_node(structural(Spec), Spec), indent=1) + "\n"


def _node(given: Node, model: type[BaseModel] | None) -> dict[str, Any]:
    node = {keyword: given[keyword] for keyword in _KEYWORDS if keyword in given}
    if "properties" in given:
        assert model is not None, "what has keys is a model"
        declared = children(model)
        node["properties"] = {n: _key(inner, declared[n]) for n, inner in given["properties"].items()}
    if "items" in given:
        node["items"] = _node(given["items"], model)
    if "additionalProperties" in given:
        node["additionalProperties"] = _node(given["additionalProperties"], None)
    return node


def _key(given: Node, key: SpecKey) -> Mapping[str, Any]:
    fate = {} if key.fate is Fate.HONOURED else {"fate": key.fate.value, "because": key.because}
    instead = {"instead": key.instead} if key.instead else {}
    return _node(given, key.model) | fate | instead
