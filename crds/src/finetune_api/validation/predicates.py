"""Predicates over a spec, each in two forms: Python, and CEL for the API server.

Rules are written once with these, so `finetune validate` and the API server cannot disagree.
Paths are relative to spec (compute.gpu_type). In CEL `self` is the spec, and no predicate assumes that
a parent exists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

Spec = Mapping[str, Any]


class Number(NamedTuple):
    """A whole number that a spec asks for."""

    paths: tuple[str, ...]
    """Every key that is read."""
    value: Callable[[Spec], int]
    cel: str


class Predicate(NamedTuple):
    """A statement about a spec."""

    paths: tuple[str, ...]
    """Every key that is read."""
    holds: Callable[[Spec], bool]
    """Whether a spec (plain JSON data, already of the right shape) satisfies it."""
    cel: str
    """The same as a CEL expression over `self`."""
    of_key: str = ""
    """For a predicate over one key that holds where the key is absent: the same over `self`, the key's value."""
    mistake: str = "FieldValueInvalid"
    """What kind of mistake a spec makes that does not satisfy it, in the API server's terms."""


def find(spec: Spec, path: str) -> Any:
    """The value at `path`, or None where any part of it is absent."""
    at: Any = spec
    for name in path.split("."):
        if not isinstance(at, Mapping) or name not in at:
            return None
        at = at[name]
    return at


def matches(pattern: str, text: str) -> bool:
    """As RE2 does it: `$` is the end of the text, where Python would allow one more line break."""
    return re.search(pattern.replace("$", r"\Z"), text) is not None


def present(*paths: str) -> Predicate:
    """At least one of the keys is present."""
    cel = " || ".join(f"({_has(p)})" for p in paths)
    return Predicate(paths, lambda spec: any(True for _ in _values(spec, paths)), cel, mistake="FieldValueRequired")


def absent(path: str) -> Predicate:
    """The key is absent."""
    return _of_key(path, lambda _: False, lambda _: "false")._replace(mistake="FieldValueForbidden")


def among(path: str, *values: str | bool) -> Predicate:
    """The key is present and has one of the values."""
    literals = ", ".join(_literal(v) if isinstance(v, str) else str(v).lower() for v in values)
    cel = f"({_has(path)} && self.{path} in [{literals}])"
    return Predicate((path,), lambda spec: find(spec, path) in values, cel)


def fits(path: str, pattern: str) -> Predicate:
    """The key is absent, or its text matches (syntax common to Python and RE2)."""
    return _of_key(path, partial(matches, pattern), lambda text: f"{text}.matches({_literal(pattern)})")


def lacks(path: str, pattern: str) -> Predicate:
    """The key is absent, or no part of its text matches."""
    return _of_key(
        path, lambda text: not matches(pattern, text), lambda text: f"!{text}.matches({_literal(pattern)})"
    )


def names_fit(path: str, pattern: str) -> Predicate:
    """Every key of a map matches."""
    return _of_key(
        path,
        lambda names: all(matches(pattern, name) for name in names),
        lambda names: f"{names}.all(x, x.matches({_literal(pattern)}))",
    )


def names_lack(path: str, pattern: str) -> Predicate:
    """No key of a map matches."""
    return _of_key(
        path,
        lambda names: not any(matches(pattern, name) for name in names),
        lambda names: f"{names}.all(x, !x.matches({_literal(pattern)}))",
    )


def items_lack(path: str, pattern: str) -> Predicate:
    """No `name` in a list of maps matches."""
    return _of_key(
        path,
        lambda items: not any(matches(pattern, item["name"]) for item in items),
        lambda items: f"{items}.all(x, !x.name.matches({_literal(pattern)}))",
    )


def agree(*paths: str) -> Predicate:
    """All keys that are present have the same value."""
    cel = f"[{_present(paths)}].all(l, l.all(x, x == l[0]))"
    return Predicate(paths, lambda spec: all(a == b for a, b in pairwise(_values(spec, paths))), cel)


def first(paths: tuple[str, ...], default: int) -> Number:
    """The first key that is present, as a number, else the default."""
    cel = f"({_present(paths)} + [{default}])[0]"
    return Number(paths, lambda spec: int(next(_values(spec, paths), default)), cel)


def constant(number: int) -> Number:
    """A number that no key changes."""
    return Number((), lambda _: number, str(number))


def times(*factors: Number) -> Number:
    """The product."""
    cel = f"({' * '.join(f.cel for f in factors)})"
    return Number(_paths(*factors), lambda spec: math.prod(f.value(spec) for f in factors), cel)


def equal(left: Number, right: Number) -> Predicate:
    """left == right."""
    return Predicate(
        _paths(left, right), lambda spec: left.value(spec) == right.value(spec), f"{left.cel} == {right.cel}"
    )


def at_most(left: Number, right: Number) -> Predicate:
    """left <= right."""
    return Predicate(
        _paths(left, right), lambda spec: left.value(spec) <= right.value(spec), f"{left.cel} <= {right.cel}"
    )


def divides(left: Number, right: Number) -> Predicate:
    """right % left == 0."""
    return Predicate(
        _paths(left, right), lambda spec: right.value(spec) % left.value(spec) == 0, f"{right.cel} % {left.cel} == 0"
    )


def not_(of: Predicate) -> Predicate:
    """It does not hold."""
    return Predicate(of.paths, lambda spec: not of.holds(spec), f"!({of.cel})")


def all_of(*of: Predicate) -> Predicate:
    """All of them hold."""
    return Predicate(_paths(*of), lambda spec: all(p.holds(spec) for p in of), " && ".join(f"({p.cel})" for p in of))


def any_of(*of: Predicate) -> Predicate:
    """At least one of them holds."""
    return Predicate(_paths(*of), lambda spec: any(p.holds(spec) for p in of), " || ".join(f"({p.cel})" for p in of))


def _of_key(path: str, holds: Callable[[Any], bool], cel: Callable[[str], str]) -> Predicate:
    """A statement about the value of one key, which is true where the key is absent."""
    everywhere = f"!({_has(path)}) || {cel(f'self.{path}')}"
    return Predicate((path,), lambda spec: all(map(holds, _values(spec, (path,)))), everywhere, cel("self"))


def _paths(*terms: Number | Predicate) -> tuple[str, ...]:
    return tuple(chain.from_iterable(term.paths for term in terms))


def _values(spec: Spec, paths: tuple[str, ...]) -> Iterator[Any]:
    """The values that are present."""
    return (value for path in paths if (value := find(spec, path)) is not None)


def _present(paths: tuple[str, ...]) -> str:
    """CEL list of the values that are present."""
    return " + ".join(f"({_has(p)} ? [self.{p}] : [])" for p in paths)


def _has(path: str) -> str:
    names = path.split(".")
    return " && ".join(f"has(self.{'.'.join(names[: i + 1])})" for i in range(len(names)))


def _literal(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
