"""A DeepSpeed dictionary that a job names by its file, as in other trainers: its content takes the name's place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.resource.key_table import FREE_LENGTH
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_api.validation.shape import quote
from finetune_plan.deepspeed_dictionary import KEY

from .kubernetes_yaml import MAX_DEPTH, too_deep

_LONGEST = 64 * FREE_LENGTH
"""Bytes of a file: with all its spaces, more than those of a dictionary that a job may have."""


def named(resource: Mapping[str, Any]) -> str:
    """The file that a job names; empty if it names none."""
    name = find(resource, f"spec.{KEY}")
    return name if isinstance(name, str) else ""


def inlined(resource: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The job with the dictionary itself, and what is wrong with the file. Clusters see no file of this machine."""
    found, name = dict(resource), named(resource)
    if not name:
        return found, []
    try:
        dictionary = _read(Path(name))
    except OSError as error:
        return found, [_problem(name, f"cannot be read: {error.strerror}",
                                "Correct the path, which is relative to the current folder.")]  # fmt: skip
    except (ValueError, RecursionError) as error:
        return found, [_problem(name, f"is no DeepSpeed dictionary: {error}", "Correct the file.")]
    *sections, own = f"spec.{KEY}".split(".")
    at = found
    for section in sections:
        at[section] = dict(at[section])
        at = at[section]
    at[own] = dictionary
    return found, []


def _read(path: Path) -> dict[str, Any]:
    """Raises OSError, ValueError and RecursionError."""
    from finetune_data import regular  # noqa: PLC0415 - most jobs name no file, and it takes time

    with regular.opened(path, "rb") as stream:
        text: bytes = stream.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError(f"it has more than {_LONGEST:,} bytes")
    value = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError(f"it is {quote(value)} and no map")
    if too_deep(value):
        raise ValueError(f"its maps are nested deeper than {MAX_DEPTH}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """DeepSpeed refuses a name that a map has twice, too."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{quote(name)} is there twice")
        found[name] = value
    return found


def _problem(name: str, what: str, remedy: str) -> Problem:
    return Problem(f"spec.{KEY}", "NotReadable", f"The file {quote(name)} {what}.",
                   f"{remedy} Or write the dictionary itself.")  # fmt: skip
