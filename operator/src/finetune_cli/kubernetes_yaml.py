"""YAML as `kubectl apply` reads it, so that local validation agrees with the cluster.

PyYAML follows YAML 1.1: it reads `8e-6` as a string, `1:30` as ninety and `2026-01-01` as a date. Kubernetes
(sigs.k8s.io/yaml over go-yaml v2, read in version 1.6.0) reads numbers as YAML 1.2 does, dates as strings, and
yes, no, on, off, y and n still as booleans. The table of implicit types below does the same.

Stricter than Kubernetes in two cases, in which Kubernetes silently drops a value: keys of a map are unique, and they
are strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reader is several times faster; some builds of PyYAML lack it."""

MAX_DEPTH = 100
"""Several times the depth of the deepest key of a job; tags may have any shape. Parsers and validation recurse;
libyaml's C code even crashes without an error."""
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
MAX_VALUES = 100_000
"""A job has hundreds; aliases of aliases can stand for more values than memory holds."""
_OCTAL = re.compile(r"([-+]?)0[oO]?([0-7]+)")

IMPLICIT = (
    ("bool", r"(?:[yYnN]|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0[bB][01_]+|0[oO][0-7_]+|0[0-7_]*|0[xX][0-9a-fA-F_]+|[1-9][0-9_]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9_]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
"""Type, pattern of plain scalars that have it, and their first characters. The first that matches wins."""


class InvalidYaml(ValueError):
    """The text is not YAML, or has a duplicate key. Lines and columns count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(frozen=True)
class Document:
    """One document: its value as JSON data, and the locations of its parts."""

    value: Any
    node: yaml.Node | None = None

    def location(self, path: str) -> tuple[int, int]:
        """Line and column of a key such as spec.pods.env[0].name, or of the nearest one above it."""
        assert self.node is not None, "a document that was not read from YAML has no locations"
        key_node = node = self.node
        for part in re.findall(r"[^.\[\]]+", path):
            found = _child(node, part)
            if found is None:
                break
            key_node, node = found
        return key_node.start_mark.line + 1, key_node.start_mark.column + 1


def documents(text: str) -> Iterator[Document]:
    """The documents of a stream that are not empty. Raises InvalidYaml."""
    try:
        _check_size(text)
        loader = Reader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                value = loader.construct_document(node)
                if value is not None:
                    yield Document(value, node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise InvalidYaml(message, *((mark.line + 1, mark.column + 1) if mark else (1, 1))) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InvalidYaml(f"the character {error.character!r} is not allowed", line, 1) from None
    except RecursionError:
        raise InvalidYaml("anchors are nested too deeply", 1, 1) from None


def dump(data: Any) -> str:
    """JSON data as YAML that Kubernetes reads back as the same data."""
    return yaml.dump(data, Dumper=Writer, sort_keys=False, allow_unicode=True, width=110)


def value(text: str) -> Any:
    """The value of one YAML text such as `8e-6` or `[q_proj, v_proj]`. Raises InvalidYaml."""
    found = list(documents(text))
    if len(found) > 1:
        raise InvalidYaml("more than one document", 1, 1)
    return found[0].value if found else None


def too_deep(value: Any) -> bool:
    """Whether maps and lists are nested deeper than MAX_DEPTH. Iterative, for values without shared parts."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [each for each in level if isinstance(each, (dict, list))]
        level = [inner for each in nested for inner in (each.values() if isinstance(each, dict) else each)]
        if not level:
            return False
    return True


class Reader(_Loader):  # type: ignore[misc, valid-type] # chosen when the module is loaded
    """A safe loader with Kubernetes' implicit types. Values are what JSON has."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name
    bool_values = _Loader.bool_values | {"y": True, "n": False}


class Writer(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """A safe dumper that quotes a string such as 1e3, which Kubernetes would read as a number."""


def _check_size(text: str) -> None:
    """Raises an error before anything recurses over the text, or expands its aliases."""
    anchors: dict[str | None, tuple[int, int]] = {}  # levels and values of each anchored collection
    stack: list[tuple[str | None, int, int]] = []  # anchor, and levels and values so far, of each open collection
    for event in yaml.parse(text, Loader=_Loader):
        levels, values = 0, 1
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1, 1))
            values = 0  # counted at its end
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, levels, values = stack.pop()
            anchors[anchor] = levels, values
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _, _ in stack):
                raise _error(event, f"the anchor {event.anchor} contains itself")
            levels, values = anchors.get(event.anchor, (0, 1))
        if stack:
            anchor, highest, total = stack[-1]
            stack[-1] = anchor, max(highest, levels + 1), total + values
            if excess := _excess(len(stack) - 1 + stack[-1][1], stack[-1][2]):
                raise _error(event, excess)


def _excess(levels: int, values: int) -> str:
    """What there is too much of; empty if there is not."""
    if levels > MAX_DEPTH:
        return TOO_DEEP
    return f"more than {MAX_VALUES:,} values, aliases expanded" if values > MAX_VALUES else ""


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    digits = str(node.value).replace("_", "")
    octal = _OCTAL.fullmatch(digits)  # 0644 is octal for Go, and an error for Python's int(..., 0)
    try:
        return int(octal[1] + octal[2], 8) if octal else int(digits, 0)
    except ValueError:
        raise _error(node, f"{node.value!r} is not an integer") from None


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    digits = str(node.value).replace("_", "").lower()
    try:
        return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise _error(node, f"{node.value!r} is not a number") from None


def _map(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Iterator[dict[str, Any]]:
    result: dict[str, Any] = {}
    yield result  # before its content, so that anchors may refer to it
    own = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # merge keys: their entries come first, and may be overridden
    earlier: set[str] = set()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise _error(key_node, f"the key {key_node.value!r} is not a string; put it in quotes")
        if id(key_node) in own and key in earlier:
            raise _error(key_node, f"duplicate key {key!r}")
        earlier |= {key} if id(key_node) in own else set()
        result[key] = loader.construct_object(value_node, deep=True)


def _unknown(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise _error(node, f"the tag {node.tag} is not supported")


def _error(at: yaml.Node | yaml.Event, message: str) -> yaml.constructor.ConstructorError:
    mark: Any = at.start_mark  # libyaml's has a type of its own
    return yaml.constructor.ConstructorError(None, None, message, mark)


def _child(node: yaml.Node, part: str) -> tuple[yaml.Node, yaml.Node] | None:
    """The node of a part's key, and the node of its value."""
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        return node.value[int(part)], node.value[int(part)]
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == part), None)
    return None


for _type, _pattern, _first in IMPLICIT:
    for _class in (Reader, Writer):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(f"(?:{_pattern})$"), list(_first))
for _type, _constructor in (("int", _int), ("float", _float), ("map", _map)):
    Reader.add_constructor(f"tag:yaml.org,2002:{_type}", _constructor)
for _type in ("timestamp", "binary", "set", "omap", "pairs"):
    Reader.add_constructor(f"tag:yaml.org,2002:{_type}", _unknown)
Reader.add_constructor(None, _unknown)
