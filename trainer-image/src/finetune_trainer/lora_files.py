"""The folder of a LoRA adapter as PEFT writes it: which layers it is for, and their factors A and B.

Settings are read as PEFT reads them (https://huggingface.co/docs/peft, LoraConfig). What is neither LoRA nor DoRA is
refused by name: it would be lost.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor

from finetune_data import regular

from . import tensor_files
from .errors import ModelRefused
from .tensor_files import Outline

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""PEFT's names are those of its model around ours."""
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_UNCHANGED_BASES = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is; the others train on another one."""
_READ = frozenset({
    "peft_type", "base_model_name_or_path", "revision", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "bias", "use_dora",
})  # fmt: skip
_INERT = frozenset({
    "auto_mapping", "task_type", "inference_mode", "lora_dropout", "target_modules", "exclude_modules",
    "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config", "peft_version",
    "ensure_weight_tying",
})  # fmt: skip
"""Keys that say how an adapter was made. Of a layer that stores its weight transposed, its class tells."""


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear layer: its weight is V = W + scaling · B A, or with DoRA (Liu et al. 2024) m V / |V|, by rows."""

    inputs: int
    outputs: int
    scaling: float
    dora: bool = False


@dataclass(frozen=True)
class SavedAdapter:
    folder: Path
    base_name: str
    """The model that it was trained on; empty if it does not say."""
    revision: str
    layers: Mapping[str, AdaptedLayer]
    """By the name of the module in the model."""

    @property
    def base(self) -> str:
        """As job.model names a model."""
        return f"{self.base_name}@{self.revision}" if self.base_name and self.revision else self.base_name

    @contextmanager
    def opened(self) -> Iterator[Mapping[str, Any]]:
        """The tensors of its file, mapped into memory, for `factors`."""
        with tensor_files.opened(self.folder / WEIGHTS) as tensors:
            yield {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping


def factors(opened: Mapping[str, Any], layer: str) -> tuple[Tensor, Tensor]:
    """A [rank, inputs] and B [outputs, rank] of a layer."""
    return opened[f"{_PREFIX}{layer}{_A}"][...], opened[f"{_PREFIX}{layer}{_B}"][...]


def magnitudes(opened: Mapping[str, Any], layer: str) -> Tensor:
    """m [outputs] of a layer of DoRA."""
    found: Tensor = opened[f"{_PREFIX}{layer}{_MAGNITUDE}"][...]
    return found


def read(folder: Path) -> SavedAdapter:
    """Everything but the values. Raises ModelRefused for a folder that is no adapter of LoRA or DoRA."""
    config = _config(folder)
    _require_supported(folder, config)
    if not (folder / WEIGHTS).is_file():
        raise ModelRefused(
            f"adapter {folder}: {WEIGHTS} is missing; save the adapter again with model.save_pretrained(folder), "
            "which writes safetensors: other formats can run code when they are loaded"
        )
    layers = _layers(folder, config, _outlines(folder))
    name, revision = (str(config.get(key) or "") for key in ("base_model_name_or_path", "revision"))
    return SavedAdapter(folder, name, revision, layers)


def require_factors(folder: Path, names: Iterable[str]) -> None:
    """Raises ModelRefused for tensors of other methods. `names` are those of an adapter's file."""
    known = (_A, _B, _MAGNITUDE)
    other = [name for name in names if not name.endswith(known) or not name.startswith(_PREFIX)]
    if other:
        raise ModelRefused(
            f"adapter {folder}: {', '.join(other[:3])}{' and more' * (len(other) > 3)}: only factors A and B of "
            "linear layers and magnitudes (LoRA and DoRA) are merged; load it with PEFT instead"
        )


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        found = json.loads(regular.content(path))
    except FileNotFoundError:
        raise ModelRefused(
            f"{folder} is no adapter: {CONFIG} is missing; name the output of a run, its result, or a folder that "
            "PEFT has written. The result of full finetuning is a whole model already"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRefused(f"adapter {folder}: {CONFIG} cannot be read: {error}; save it again") from error
    if not isinstance(found, dict):
        raise ModelRefused(f"adapter {folder}: {CONFIG} is not a JSON object; save the adapter again")
    return found


def _require_supported(folder: Path, config: Mapping[str, Any]) -> None:
    wrong = [f"{key} {value!r}" for key, value in config.items() if value and key not in _READ | _INERT]
    if config.get("peft_type") != "LORA":
        wrong.append(f"peft_type {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        wrong.append(f"bias {config['bias']!r}")
    if config.get("init_lora_weights") not in _UNCHANGED_BASES:
        wrong.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if wrong:
        raise ModelRefused(
            f"adapter {folder}: {CONFIG} has {', '.join(wrong)}, and only LoRA and DoRA are merged; load it with "
            "PEFT instead"
        )


def _outlines(folder: Path) -> dict[str, Outline]:
    tensor_files.require_known_formats([folder / WEIGHTS])
    return tensor_files.outlines_of([folder / WEIGHTS])


def _layers(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline]) -> dict[str, AdaptedLayer]:
    require_factors(folder, stored)
    names = dict.fromkeys(
        name.removeprefix(_PREFIX).removesuffix(_A).removesuffix(_B).removesuffix(_MAGNITUDE) for name in stored
    )
    if not names:
        raise ModelRefused(f"adapter {folder}: {WEIGHTS} has no tensors; save the adapter again")
    return {name: _layer(folder, config, stored, name) for name in names}


def _layer(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline], name: str) -> AdaptedLayer:
    rank, scaling = _scaling(folder, config, name)
    a, b = stored.get(f"{_PREFIX}{name}{_A}"), stored.get(f"{_PREFIX}{name}{_B}")
    if a is None or b is None:
        raise ModelRefused(f"adapter {folder}: {name} has only one of the factors A and B; save the adapter again")
    for outline in (a, b):
        if not outline.dtype.is_floating_point or len(outline.shape) != 2:
            raise ModelRefused(f"adapter {folder}: {name} has factors of {outline.dtype} {list(outline.shape)}, no "
                               "matrices of numbers; load it with PEFT instead")  # fmt: skip
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise ModelRefused(
            f"adapter {folder}: {name} has the rank {str(rank)[:20]} in {CONFIG}, but factors {list(b.shape)} and "
            f"{list(a.shape)}; take both files from where the adapter is from"
        )
    m, dora = stored.get(f"{_PREFIX}{name}{_MAGNITUDE}"), bool(config.get("use_dora"))
    if (m.shape if m else None) != ((b.shape[0],) if dora else None):
        raise ModelRefused(
            f"adapter {folder}: {name} has {'no magnitudes' if m is None else f'magnitudes {list(m.shape)}'}, and "
            f"use_dora in {CONFIG} is {str(dora).lower()}; take both files from where the adapter is from"
        )
    return AdaptedLayer(a.shape[1], b.shape[0], scaling, dora)


def _scaling(folder: Path, config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Rank and scaling of a layer: alpha / r, or with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
    try:
        rank, alpha = (
            _setting(config, "r", "rank_pattern", name),
            _setting(config, "lora_alpha", "alpha_pattern", name),
        )
        scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, re.error) as error:
        raise ModelRefused(
            f"adapter {folder}: r, lora_alpha or a pattern of {CONFIG} is no number: {error}"
        ) from error
    if not math.isfinite(scaling):
        raise ModelRefused(
            f"adapter {folder}: {CONFIG} scales {name} by {scaling}; take it from the adapter's source"
        )
    return rank, scaling


def _setting(config: Mapping[str, Any], key: str, patterns: str, name: str) -> Any:
    """The value for a layer: that of the first pattern which its name ends with, else that of all layers."""
    special = config.get(patterns) or {}
    return special.get(get_pattern_key(list(special), name), config.get(key, 8))
