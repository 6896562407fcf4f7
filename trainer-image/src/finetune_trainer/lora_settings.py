"""What adapter_config.json says of each layer, as PEFT reads it: whether it has an adapter, its rank, its scaling."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.resource.defaults import LORA_TARGETS

from . import parameter_files
from .adapter_folder import CONFIG, WEIGHTS, printable
from .errors import ModelRefused
from .expressions import Expressions

_MOST = 3.4e38
"""Of a scaling: fp32 has no more."""
_QUOTED = 60
"""Characters of a value in a message."""
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
"""In the name of a module, its first number, as PEFT finds it."""


def scaling(folder: Path, config: Mapping[str, Any], name: str, expressions: Expressions) -> tuple[int, float, float]:
    """Rank, alpha and scaling of a layer: alpha / r, or with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023).

    Raises ModelRefused for what is no number.
    """
    rank = _setting(folder, config, ("r", "rank_pattern"), name, expressions)
    alpha = _setting(folder, config, ("lora_alpha", "alpha_pattern"), name, expressions)
    try:
        factor = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ModelRefused(
            f"adapter {folder}: r, lora_alpha or a pattern of {CONFIG} gives {printable(name)} the rank "
            f"{_quoted(rank)} and the alpha {_quoted(alpha)}, which have no quotient; take it from the adapter's "
            "source"
        ) from error
    if not abs(factor) <= _MOST:
        raise ModelRefused(
            f"adapter {folder}: {CONFIG} scales {printable(name)} by {factor}; take it from the adapter's source"
        )
    return rank, alpha, factor


def _setting(
    folder: Path, config: Mapping[str, Any], keys: tuple[str, str], name: str, expressions: Expressions
) -> Any:
    """The value for a layer: that of the first pattern which its name ends with, else that of all layers."""
    key, patterns = keys
    special = config.get(patterns) or {}
    if not isinstance(special, dict):
        raise ModelRefused(f"adapter {folder}: {patterns} of {CONFIG} is no object; save the adapter again")
    for text, value in special.items():
        try:
            if expressions.matches(rf"(.*\.)?({text})", name):  # as PEFT frames it
                return value
        except ValueError as error:
            raise ModelRefused(
                f"adapter {folder}: {patterns} of {CONFIG} has {_quoted(text)}, which is no regular expression of "
                f"names: {error}; take it from the adapter's source"
            ) from error
    return config.get(key, 8)


def _quoted(value: object) -> str:
    return printable(repr(value))[:_QUOTED]


def require_targets(folder: Path, config: Mapping[str, Any], names: Iterable[str], expressions: Expressions) -> None:
    """Raises ModelRefused for a layer that the settings leave out: PEFT would not use it, in silence."""
    for name in names:
        try:
            meant = _is_target(config, name, expressions)
        except (ValueError, TypeError) as error:
            raise ModelRefused(
                f"adapter {folder}: target_modules, exclude_modules or layers_to_transform of {CONFIG} cannot be "
                f"read: {error}; take it from the adapter's source"
            ) from error
        if not meant:
            raise ModelRefused(
                f"adapter {folder}: {WEIGHTS} has {printable(name)}, which target_modules, exclude_modules or "
                f"layers_to_transform of {CONFIG} leave out; take both files from where the adapter is from"
            )


def _is_target(config: Mapping[str, Any], name: str, expressions: Expressions) -> bool:
    """As PEFT understands these keys. Without target_modules it asks a table of architectures."""
    targets, excluded, only = (
        config.get(key) for key in ("target_modules", "exclude_modules", "layers_to_transform")
    )
    if excluded and _is_named(excluded, name, expressions):
        return False
    if targets and targets != LORA_TARGETS and not _is_named(targets, name, expressions):
        return False
    if only in (None, []) or not isinstance(targets, list) or config.get("layers_pattern"):
        return True
    number = _LAYER.match(name)
    return number is not None and int(number[1]) in (only if isinstance(only, list) else [only])


def _is_named(given: Any, name: str, expressions: Expressions) -> bool:
    """Whether an expression, or one of a list of ends of names, is of this name."""
    if isinstance(given, str):
        return expressions.matches(given, name)
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ValueError(f"{_quoted(given)} is no list of names")
    return any(parameter_files.is_end(name, end) for end in given)
