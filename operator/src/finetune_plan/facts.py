"""The spec as plain data, read by key groups: the first name that is given wins, and says that it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.validation.predicates import find


@dataclass(frozen=True)
class Note:
    """Something the user should know although nothing is wrong."""

    reason: str
    sentence: str


@dataclass(frozen=True)
class Given:
    """A value and the key that said it."""

    value: Any
    path: str


def first(spec: Mapping[str, Any], paths: Iterable[str]) -> Given | None:
    """The first of the keys that is given."""
    return next((Given(v, p) for p in paths if (v := find(spec, p)) is not None), None)


def get(spec: Mapping[str, Any], default: Any, *paths: str) -> Any:
    """The value of the first key that is given, else the default."""
    given = first(spec, paths)
    return default if given is None else given.value
