"""The declared keys of a job as data, for validation: what the models declare, without building them.

keys.json is generated (codegen/key_table_file.py). Importing pydantic and building the models takes longer than
everything else that `finetune validate` does together. Called by validation and by the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

Node = Mapping[str, Any]
"""A node of the schema, in OpenAPI terms; a key also has a `fate`, and a `because` unless it is honoured."""
FILE = "keys.json"
FREE_LENGTH = 16384
"""Characters of a map that holds anything, as the admission policy writes it: JSON, numbers with six decimals."""


class Fate(StrEnum):
    """How a key is treated; keys.py declares it."""

    HONOURED = "honoured"
    INFORMATIONAL = "informational"
    REFUSED = "refused"


class Declared(NamedTuple):
    """One declared key. Its path is relative to spec; entries of a list have the path `list[]`."""

    path: str
    fate: Fate
    because: str


@cache
def spec() -> Node:
    """The node of `spec`."""
    found: Node = json.loads(Path(__file__).with_name(FILE).read_bytes())
    return found


def declared(*, below: Node | None = None, prefix: str = "") -> Iterator[Declared]:
    """Every key in the order of declaration, depth first, sections included."""
    for name, node in keys(spec() if below is None else below).items():
        path = f"{prefix}{name}"
        yield Declared(path, Fate(node.get("fate", Fate.HONOURED)), node.get("because", ""))
        is_list = "items" in node
        yield from declared(below=node["items"] if is_list else node, prefix=f"{path}[]." if is_list else f"{path}.")


def free_maps(below: Node | None = None, prefix: str = "") -> Iterator[str]:
    """The keys of spec that hold anything; only the whole of each has a bound."""
    for name, node in keys(spec() if below is None else below).items():
        if is_free(node):
            yield f"{prefix}{name}"
        yield from free_maps(node, f"{prefix}{name}.")


def is_free(node: Node) -> bool:
    return node.get("type") == "object" and not ("properties" in node or "additionalProperties" in node)


def keys(node: Node) -> Mapping[str, Node]:
    """The keys of a section by name; nothing where there are none, or any."""
    found: Mapping[str, Node] = node.get("properties", {})
    return found
