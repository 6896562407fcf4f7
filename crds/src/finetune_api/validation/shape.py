"""Checks that a value has the shape that its key declares. Called by check.py.

The keywords of the schema have the semantics of the API server: the length of a text counts code points, `$` is
the end of the text, and a mistake in an entry of a list is reported at that entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune_api.resource import key_table
from finetune_api.resource.key_table import Node
from finetune_api.resource.names import API_VERSION, KIND, NAME_LENGTH, NAME_PATTERN

from .predicates import matches
from .problem import Problem
from .unknown import nearest

_MIXED = ""
"""Choices of different types."""
_TEXT: Node = {"type": "string"}
_TEXTS: Node = {"type": "object", "additionalProperties": _TEXT}
_METADATA: Node = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": NAME_LENGTH, "pattern": NAME_PATTERN},
        "namespace": _TEXT,
        "uid": _TEXT,
        "generation": {"type": "integer"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
}
"""The part of ObjectMeta that is read."""


def root() -> Node:
    """The schema of a whole job, without the status, which only the operator writes."""
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string", "enum": [API_VERSION]},
            "kind": {"type": "string", "enum": [KIND]},
            "metadata": _METADATA,
            "spec": key_table.spec(),
        },
    }


def shape_problems(value: Any, node: Node, path: str = "") -> Iterator[Problem]:
    """Problems of a value, given as plain JSON data without nulls, and of everything inside it."""
    declared = node.get("type", _MIXED)
    right, kind, inside = _KINDS[declared]
    if not right(value):
        yield _bad_value(path, value, f"it must be {kind}", _meant(value, node))
    else:
        yield from inside(value, node, path)


def _map(value: Mapping[str, Any], node: Node, path: str) -> Iterator[Problem]:
    known = key_table.keys(node)
    for name in node.get("required", ()):
        if name not in value:
            yield Problem(_at(path, name), "Missing", "The key is required.", "Set it.")
    if len(value) > node.get("maxProperties", len(value)):
        yield _bad_value(path, value, f"it may have at most {node['maxProperties']} entries")
    if path and key_table.is_free(node) and len(_measured(value)) > key_table.FREE_LENGTH:
        yield _bad_value(
            path, value, f"as text it may have at most {key_table.FREE_LENGTH} characters", "Shorten it."
        )
    for name, inner in value.items():
        below = known.get(name) or node.get("additionalProperties")
        if below:
            yield from shape_problems(inner, below, _at(path, name))


def _list(value: list[Any], node: Node, path: str) -> Iterator[Problem]:
    if len(value) < node.get("minItems", 0):
        yield _bad_value(path, value, f"it must have {node['minItems']} or more entries")
    if len(value) > node.get("maxItems", len(value)):
        yield _bad_value(path, value, f"it may have at most {node['maxItems']} entries")
    for i, inner in enumerate(value):
        yield from shape_problems(inner, node["items"], f"{path}[{i}]")


def _text(value: str, node: Node, path: str) -> Iterator[Problem]:
    yield from _choice(value, node, path)
    if len(value) < node.get("minLength", 0):
        yield _bad_value(path, value, f"it must have {node['minLength']} or more characters")
    elif len(value) > node.get("maxLength", len(value)):
        yield _bad_value(path, value, f"it may have at most {node['maxLength']} characters")
    elif "pattern" in node and not matches(node["pattern"], value):
        yield _bad_value(path, value, f"it must match {node['pattern']}")


def _choice(value: Any, node: Node, path: str) -> Iterator[Problem]:
    choices = node.get("enum")
    if choices and not any(value == each and type(value) is type(each) for each in choices):  # True == 1
        *most, last = (repr(each) if isinstance(each, str) else json.dumps(each) for each in choices)
        wrong = f"one of {', '.join(most)} or {last}" if most else f"supported; the only value is {last}"
        remedy = node.get("instead") or _intended(value, choices) or _remedy(path)
        yield Problem(path, "UnknownValue", f"{quote(value)} is not {wrong}.", remedy)


def _number(value: float, node: Node, path: str) -> Iterator[Problem]:
    low, high = node.get("minimum"), node.get("maximum")
    more = "more than" if node.get("exclusiveMinimum") else "at least"
    less = "must be less than" if node.get("exclusiveMaximum") else "may be at most"
    if low is not None and (value <= low if node.get("exclusiveMinimum") else value < low):
        yield _bad_value(path, value, f"it must be {more} {low}")
    if high is not None and (value >= high if node.get("exclusiveMaximum") else value > high):
        yield _bad_value(path, value, f"it {less} {high}")


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str, Callable[[Any, Node, str], Iterator[Problem]]]] = {
    "object": (lambda v: isinstance(v, Mapping), "a map", _map),
    "array": (lambda v: isinstance(v, list), "a list", _list),
    "string": (lambda v: isinstance(v, str), "a string", _text),
    "integer": (lambda v: isinstance(v, int) and not isinstance(v, bool), "an integer", _number),
    "number": (lambda v: isinstance(v, (int, float)) and not isinstance(v, bool), "a number", _number),
    "boolean": (lambda v: isinstance(v, bool), "true or false", lambda *_: iter(())),
    _MIXED: (lambda _: True, "", _choice),
}
"""Type -> whether a value has it, its name, and the check of a value that has it."""


def _bad_value(path: str, value: Any, expected: str, remedy: str = "") -> Problem:
    return Problem(path, "BadValue", f"{quote(value)} is not valid: {expected}.", remedy or _remedy(path))


def _meant(value: Any, node: Node) -> str:
    """How to write what a value of another type says; empty if that is unknown."""
    declared = node.get("type", _MIXED)
    if declared == "string" and isinstance(value, (int, float)):
        # YAML reads a text without quotes, such as `cpu: 8`, as a number or a boolean.
        return node.get("instead") or _ADD_QUOTES
    if declared == "array":
        entries = value.split(",") if isinstance(value, str) else [json.dumps(value)]
        names = [each.strip() for each in entries]
        if all(map(_UNQUOTED.fullmatch, names)):
            return f"Write [{', '.join(names)}]."
    return ""


def _intended(value: Any, choices: list[Any]) -> str:
    near = nearest(value, tuple(each for each in choices if isinstance(each, str))) if isinstance(value, str) else ""
    return f"Did you mean {near}?" if near else ""


def _measured(value: Any) -> str:
    """The text whose length the admission policy limits: `'%s'.format` of CEL."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_measured(name)}:{_measured(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_measured, value))}]"
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    is_double = isinstance(value, float) or (isinstance(value, int) and not -(2**63) <= value < 2**63)
    return f"{float(value):f}" if is_double else json.dumps(value)


def _escaped(letter: str) -> str:
    """As long as Go's strconv.Quote makes it."""
    if letter in '\a\b\f\n\r\t\v\\"':
        return f"\\{letter}"
    code = ord(letter)
    unseen = f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return letter if letter.isprintable() else unseen


_ADD_QUOTES = "Put quotes around it."
_UNQUOTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}")
"""What YAML reads in a list as it is written, and a terminal shows so."""


def _remedy(path: str) -> str:
    return f"Correct it; `finetune explain {path.removeprefix('spec.')}` describes the key."


def quote(value: Any) -> str:
    """A value in a message: the beginning of it if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
