"""What there is to know about a key: what it means, what fits, what becomes of it, which rules read it.

Called by `finetune explain` and by pages.py, which writes docs/reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

from finetune_api.resource.key_table import FREE_LENGTH
from finetune_api.resource.keys import SpecKey, keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation.rules import Rule, all_rules
from finetune_api.validation.unknown import NOT_YET, USUAL, nearest

from .schema import structural


class NoSuchKeyError(LookupError):
    """There is no such key; the message names the nearest one."""


@dataclass(frozen=True)
class KeyEntry:
    """One key. Its path is relative to spec; entries of a list have the path `list[]`."""

    path: str
    key: SpecKey
    bounds: str
    description: str
    rules: tuple[Rule, ...]
    required: bool


@cache
def entries() -> Mapping[str, KeyEntry]:
    """Every key of a job by its path, in the order of declaration."""
    return {entry.path: entry for entry in _entries()}


def find(path: str) -> KeyEntry:
    """The key at a path, which may start with `spec.`. Raises NoSuchKeyError, which names the nearest key."""
    path = path.removeprefix("spec").lstrip(".")
    entry = entries().get(path) or entries().get(_without_indices(path))
    if entry is None:
        raise NoSuchKeyError(_no_such(path))
    return entry


def explain(path: str) -> str:
    """What there is to know about one key, in lines; an empty path stands for the whole job. Raises as find."""
    if path in ("", "spec"):
        return "\n".join([str(Spec.__doc__), *_listed("")])
    entry = find(path)
    return "\n".join([entry.path, *_details(entry), *_listed(f"{entry.path}{'[]' if entry.key.is_list else ''}.")])


def _entries() -> Iterator[KeyEntry]:
    schema = structural(Spec)
    for key in keys(Spec, ""):
        path = key.path.lstrip(".")
        node, required = _node(schema, path)
        rules = tuple(rule for rule in all_rules() if path in rule.must.paths)
        yield KeyEntry(path, key, describe_schema(node), node["description"], rules, required)


def describe_schema(node: Mapping[str, Any]) -> str:
    """Type and bounds of a node as a person reads them: `number, more than 0, at most 1`."""
    match node.get("type"):
        case None:
            return " or ".join(each if isinstance(each, str) else json.dumps(each) for each in node["enum"])
        case "object":
            return _describe_object(node)
        case "array":
            least = f"{node['minItems']} to " if "minItems" in node else "up to "
            return f"list of {least}{node['maxItems']} entries ({describe_schema(node['items'])})"
        case "string":
            return _describe_string(node)
        case "integer":
            return f"integer, {node['minimum']} to {node['maximum']}"
        case "number":
            low = ("more than" if node.get("exclusiveMinimum") else "at least", node.get("minimum"))
            high = ("less than" if node.get("exclusiveMaximum") else "at most", node.get("maximum"))
            return ", ".join(["number", *(f"{word} {end:g}" for word, end in (low, high) if end is not None)])
    return "true or false"


def _describe_object(node: Mapping[str, Any]) -> str:
    if "properties" in node:
        return "section"
    free = f", as text up to {FREE_LENGTH} characters"
    values = f" ({describe_schema(node['additionalProperties'])})" if "additionalProperties" in node else free
    return f"map of up to {node['maxProperties']} entries{values}"


def _describe_string(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return " or ".join(node["enum"])
    least = f"{node['minLength']} to" if "minLength" in node else "up to"
    pattern = f", matching `{node['pattern']}`" if "pattern" in node else ""
    return f"string, {least} {node['maxLength']} characters{pattern}"


def _node(schema: Mapping[str, Any], path: str) -> tuple[Mapping[str, Any], bool]:
    """The node at a path, and whether its parent requires it."""
    required = False
    for name in path.split("."):
        schema = schema.get("items", schema)
        required = name in schema.get("required", ())
        schema = schema["properties"][name.removesuffix("[]")]
    return schema, required


def _details(entry: KeyEntry) -> Iterator[str]:
    yield f"  {entry.description}"
    yield f"  Fits:  {entry.bounds}{', required' if entry.required else ''}."
    yield f"  Fate:  {entry.key.fate}."
    for rule in entry.rules:
        yield f"  Rule:  {rule.message} {rule.remedy} [{rule.reason}]"


def _listed(prefix: str) -> Iterator[str]:
    """The keys of a section, a line each."""
    inside = [e for e in entries().values() if e.path.startswith(prefix) and "." not in e.path[len(prefix) :]]
    if inside:
        yield "  Keys:"
        width = max(len(e.key.path.rpartition(".")[2]) for e in inside)
        yield from (f"    {e.path.rpartition('.')[2]:<{width}}  {e.description}" for e in inside)


def _without_indices(path: str) -> str:
    """pods.env[0].name and pods.env.name both mean pods.env[].name, and an entry of a map means the map."""
    known = {each.replace("[]", ""): each for each in entries()}
    without_indices = ".".join(name.partition("[")[0] for name in path.split("."))
    for map_path in accumulate(without_indices.split("."), "{}.{}".format):
        if map_path in known and entries()[known[map_path]].bounds.startswith("map of"):
            return known[map_path]
    return known.get(without_indices, path)


def _no_such(path: str) -> str:
    """The last name counts first: people remember a key sooner than its section."""
    name = path.rpartition(".")[2]
    if name in NOT_YET:
        return f"A job has no key {path!r}. {NOT_YET[name]}"
    if name in USUAL:
        return f"A job has no key {path!r}. Did you mean {USUAL[name]}?"
    nearest_name = nearest(name, tuple(dict.fromkeys(known.rpartition(".")[2] for known in entries())))
    candidates = tuple(known for known in entries() if known.rpartition(".")[2] == nearest_name)
    hint = f" Did you mean {nearest(path, candidates) or candidates[0]}?" if candidates else ""
    return f"A job has no key {path!r}.{hint}"
