"""Adapters on parameters in PEFT's file (target_parameters): factors of all its matrices are in one A and one B.

Of a module with several adapted parameters PEFT nests wrappers, so names in the file tell their order and not which
parameter each is of: `experts.lora_A` is of the last one of the module, `experts.base_layer.lora_A` of the one
before.
Read by lora_files.py, and with the model by target_parameters.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INNER = ".base_layer"
"""PEFT's name of what a wrapper is around."""


@dataclass(frozen=True)
class AdaptedParameter:
    """Shapes of its factors: A [experts · rank, inputs], one expert after another, and B [outputs, rank · experts],
    one rank after another."""

    a: tuple[int, ...]
    b: tuple[int, ...]


def targets(config: Mapping[str, Any]) -> list[str]:
    """Ends of names of parameters. Raises ValueError for what is no list of names."""
    found = config.get("target_parameters") or []
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ValueError("target_parameters is no list of names")
    return sorted(set(found))


def is_of_parameter(config: Mapping[str, Any], name: str) -> bool:
    """Whether the factors under this name are of a parameter, and not of the module itself.

    Raises ValueError for settings that cannot be read.
    """
    if not targets(config):
        return False
    modules = config.get("target_modules") or []
    try:
        if isinstance(modules, str):  # anybody may have written it, and an expression may take for ever
            raise ValueError("target_modules is an expression beside target_parameters, and is read as a list only")
        return name.endswith(INNER) or not any(is_end(name, end) for end in modules)
    except TypeError as error:
        raise ValueError(f"target_modules: {error}") from error


def is_end(name: str, end: Any) -> bool:
    """Whether a name is this one, or ends with it, by whole parts."""
    return f".{name}".endswith(f".{end}")


def module_and_depth(name: str) -> tuple[str, int]:
    """The module that factors under this name are in, and how many wrappers are around theirs."""
    depth = 0
    while name.endswith(INNER):
        name, depth = name.removesuffix(INNER), depth + 1
    return name, depth


def ordered(parameters: Sequence[str]) -> list[str]:
    """By depth, of parameters in the order of their module: PEFT wraps the first one first."""
    return list(reversed(parameters))
