"""Predicates over a spec, each with two forms: Python, and CEL for the API server.

Rules are written once with these, so `finetune validate` and the API server cannot disagree.
Paths are relative to spec (compute.gpu_type). In CEL `self` is the spec, and no predicate assumes that
a parent exists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

Spec = Mapping[str, Any]


class Predicate(Protocol):
    def holds(self, spec: Spec) -> bool:
        """Whether `spec` (plain JSON data, already of the right shape) satisfies the predicate."""

    def cel(self) -> str:
        """The same as a CEL expression over `self`."""


@runtime_checkable
class OfOneKey(Protocol):
    """A predicate over the value of one key, which holds wherever the key is absent."""

    @property
    def path(self) -> str:
        """The key."""

    def at(self, value: str) -> str:
        """The same as a CEL expression over `value`, the key's own: evaluated only where the key is present."""


class Number(Protocol):
    def value(self, spec: Spec) -> int: ...

    def cel(self) -> str: ...


def find(spec: Spec, path: str) -> Any:
    """The value at `path`, or None where any part of it is absent."""
    at: Any = spec
    for name in path.split("."):
        if not isinstance(at, Mapping) or name not in at:
            return None
        at = at[name]
    return at


def paths_read(term: object) -> Iterator[str]:
    """Every path that a predicate or number reads."""
    paths = getattr(term, "paths", ()) or (getattr(term, "path", None),)
    yield from (path for path in paths if path is not None)
    if isinstance(term, tuple):
        for part in term:
            yield from paths_read(part)


def matches(pattern: str, text: str) -> bool:
    """As RE2 does it: `$` is the end of the text, where Python would allow one more line break."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def _has(path: str) -> str:
    names = path.split(".")
    return " && ".join(f"has(self.{'.'.join(names[: i + 1])})" for i in range(len(names)))


def _if_there(predicate: OfOneKey) -> str:
    return f"!({_has(predicate.path)}) || {predicate.at(f'self.{predicate.path}')}"


def _cel_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _all_of(paths: tuple[str, ...]) -> str:
    """CEL list of the values that are present."""
    return " + ".join(f"({_has(p)} ? [self.{p}] : [])" for p in paths)


class Present(NamedTuple):
    """At least one of the keys is present."""

    paths: tuple[str, ...]

    def holds(self, spec: Spec) -> bool:
        return any(find(spec, p) is not None for p in self.paths)

    def cel(self) -> str:
        return " || ".join(f"({_has(p)})" for p in self.paths)


class Absent(NamedTuple):
    """The key is absent."""

    path: str

    def holds(self, spec: Spec) -> bool:
        return find(spec, self.path) is None

    def cel(self) -> str:
        return f"!({_has(self.path)})"

    def at(self, value: str) -> str:
        return "false"


class Among(NamedTuple):
    """The key is present and has one of the values (strings, booleans or integers)."""

    path: str
    values: tuple[str | bool | int, ...]

    def holds(self, spec: Spec) -> bool:
        return find(spec, self.path) in self.values and find(spec, self.path) is not None

    def cel(self) -> str:
        literals = ", ".join(_cel_string(v) if isinstance(v, str) else str(v).lower() for v in self.values)
        return f"({_has(self.path)} && self.{self.path} in [{literals}])"


class Matches(NamedTuple):
    """The key is absent, or its text matches (syntax common to Python and RE2)."""

    path: str
    pattern: str

    def holds(self, spec: Spec) -> bool:
        value = find(spec, self.path)
        return value is None or matches(self.pattern, value)

    def cel(self) -> str:
        return _if_there(self)

    def at(self, value: str) -> str:
        return f"{value}.matches({_cel_string(self.pattern)})"


class Lacks(NamedTuple):
    """The key is absent, or no part of its text matches."""

    path: str
    pattern: str

    def holds(self, spec: Spec) -> bool:
        value = find(spec, self.path)
        return value is None or not matches(self.pattern, value)

    def cel(self) -> str:
        return _if_there(self)

    def at(self, value: str) -> str:
        return f"!{value}.matches({_cel_string(self.pattern)})"


class NoNames(NamedTuple):
    """No key of a map, or no `name` of a list of maps, matches the pattern."""

    path: str
    pattern: str
    of_list: bool = False

    def holds(self, spec: Spec) -> bool:
        value = find(spec, self.path) or ()
        return not any(matches(self.pattern, item["name"] if self.of_list else item) for item in value)

    def cel(self) -> str:
        return _if_there(self)

    def at(self, value: str) -> str:
        name = "x.name" if self.of_list else "x"
        return f"{value}.all(x, !{name}.matches({_cel_string(self.pattern)}))"


class AllNames(NamedTuple):
    """Every key of a map matches the pattern."""

    path: str
    pattern: str

    def holds(self, spec: Spec) -> bool:
        return all(matches(self.pattern, name) for name in find(spec, self.path) or ())

    def cel(self) -> str:
        return _if_there(self)

    def at(self, value: str) -> str:
        return f"{value}.all(x, x.matches({_cel_string(self.pattern)}))"


class Agree(NamedTuple):
    """All keys that are present have the same value."""

    paths: tuple[str, ...]

    def holds(self, spec: Spec) -> bool:
        values = [v for p in self.paths if (v := find(spec, p)) is not None]
        return all(v == values[0] for v in values)

    def cel(self) -> str:
        return f"[{_all_of(self.paths)}].all(l, l.all(x, x == l[0]))"


class First(NamedTuple):
    """The first key that is present, as a number, else the default."""

    paths: tuple[str, ...]
    default: int

    def value(self, spec: Spec) -> int:
        return next((int(v) for p in self.paths if (v := find(spec, p)) is not None), self.default)

    def cel(self) -> str:
        return f"({_all_of(self.paths)} + [{self.default}])[0]"


class Constant(NamedTuple):
    number: int

    def value(self, spec: Spec) -> int:
        return self.number

    def cel(self) -> str:
        return str(self.number)


class Times(NamedTuple):
    factors: tuple[Number, ...]

    def value(self, spec: Spec) -> int:
        product = 1
        for factor in self.factors:
            product *= factor.value(spec)
        return product

    def cel(self) -> str:
        return "(" + " * ".join(f.cel() for f in self.factors) + ")"


class Compare(NamedTuple):
    """left <operator> right, of whole numbers; operator is ==, <= or 'divides' (right % left == 0)."""

    left: Number
    operator: str
    right: Number

    def holds(self, spec: Spec) -> bool:
        left, right = self.left.value(spec), self.right.value(spec)
        if self.operator == "divides":
            return right % left == 0
        return left == right if self.operator == "==" else left <= right

    def cel(self) -> str:
        if self.operator == "divides":
            return f"{self.right.cel()} % {self.left.cel()} == 0"
        return f"{self.left.cel()} {self.operator} {self.right.cel()}"


class Not(NamedTuple):
    inner: Predicate

    def holds(self, spec: Spec) -> bool:
        return not self.inner.holds(spec)

    def cel(self) -> str:
        return f"!({self.inner.cel()})"


class All(NamedTuple):
    inner: tuple[Predicate, ...]

    def holds(self, spec: Spec) -> bool:
        return all(p.holds(spec) for p in self.inner)

    def cel(self) -> str:
        return " && ".join(f"({p.cel()})" for p in self.inner)


class Either(NamedTuple):
    inner: tuple[Predicate, ...]

    def holds(self, spec: Spec) -> bool:
        return any(p.holds(spec) for p in self.inner)

    def cel(self) -> str:
        return " || ".join(f"({p.cel()})" for p in self.inner)
