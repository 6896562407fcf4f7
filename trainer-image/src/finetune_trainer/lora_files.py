"""The weights of a LoRA adapter as PEFT writes them: which layers they are for, and their factors A and B.

And the weights of modules that were trained in full beside them (modules_to_save), biases, and rows of tokens
(trainable_token_indices).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from finetune_api.runtime.choices import LoraBias

from . import adapter_folder, lora_settings, parameter_files, tensor_files
from .adapter_folder import CONFIG, WEIGHTS, printable
from .errors import ModelRefused
from .expressions import Expressions
from .parameter_files import AdaptedParameter
from .tensor_files import Outline

T = TypeVar("T")
PREFIX = "base_model.model."
"""PEFT's names are those of its model around ours."""
_BASE = ".base_layer."
"""In these names, the layer itself inside its adapter."""
_OF_ROWS = ".token_adapter.base_layer.bias"
_WRAPPER = frozenset({"modules_to_save", "original_module"})
"""In names of biases that PEFT adds of a module in full where it also trains biases: the trained ones once more."""
_FACTORS = _A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
ROWS = ".token_adapter.trainable_tokens_delta"
"""End of the name of rows [tokens, width] that take the places of those of an embedding or a head."""


@dataclass(frozen=True)
class AdaptedLayer:
    """A linear layer: its weight is V = W + scaling · B A, or with DoRA (Liu et al. 2024) m V / |V|, by rows."""

    inputs: int
    outputs: int
    rank: int
    alpha: float
    scaling: float
    dora: bool = False


@dataclass(frozen=True)
class SavedRows:
    """Rows of an embedding or a head."""

    ids: tuple[int, ...]
    """Their tokens."""
    width: int


@dataclass(frozen=True)
class SavedAdapter:
    folder: Path
    base_name: str
    """The model that it was trained on; empty if it does not say."""
    revision: str
    layers: Mapping[str, AdaptedLayer]
    """By the name of the module in the model."""
    whole: Mapping[str, Outline] = field(default_factory=dict)
    """By the name of the parameter or buffer in the model: what takes its place."""
    modules: Sequence[str] = ()
    """Ends of names of the modules that it has in full."""
    rows: Mapping[str, SavedRows] = field(default_factory=dict)
    """By the name of the module in the model."""
    parameters: Mapping[str, AdaptedParameter] = field(default_factory=dict)
    """By the name of their factors in the file: target_parameters.py tells which parameters they are of."""
    targets: Sequence[str] = ()
    """Ends of names of those parameters."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of adapter_config.json."""

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
    return opened[f"{PREFIX}{layer}{_A}"][...], opened[f"{PREFIX}{layer}{_B}"][...]


def magnitudes(opened: Mapping[str, Any], layer: str) -> Tensor:
    """m [outputs] of a layer of DoRA."""
    found: Tensor = opened[f"{PREFIX}{layer}{_MAGNITUDE}"][...]
    return found


def differing(values: Mapping[str, T], usual: T) -> dict[str, T]:
    """As a pattern for each layer of its own: PEFT's file sorts patterns, and the first one holds."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def value(opened: Mapping[str, Any], name: str) -> Tensor:
    """Of a parameter or buffer that was trained in full, by its name in the model."""
    module, _, own = f"{PREFIX}{name}".rpartition(".")
    adapted = f"{module}{_BASE}{own}"
    found: Tensor = opened[adapted if adapted in opened else f"{PREFIX}{name}"][...]
    return found


def in_model(name: str) -> str:
    """The name in the model of what PEFT calls `name`, which has the layer itself inside its adapter."""
    module, _, own = name.removeprefix(PREFIX).rpartition(".")
    return f"{module.removesuffix(_BASE[:-1])}.{own}"


def rows(opened: Mapping[str, Any], module: str) -> Tensor:
    """Of an embedding or a head, in the order of `SavedRows.ids`."""
    found: Tensor = opened[f"{PREFIX}{module}{ROWS}"][...]
    return found


def read(folder: Path) -> SavedAdapter:
    """Everything but the values. Raises ModelRefused for a folder that is no adapter of LoRA or DoRA."""
    config = adapter_folder.settings(folder)
    stored, modules = _outlines(folder), adapter_folder.modules_to_save(folder, config)
    own_rows = {name: outline for name, outline in stored.items() if name.endswith(ROWS) and name.startswith(PREFIX)}
    stored = {name: outline for name, outline in stored.items() if name not in own_rows}
    if config.get("bias", LoraBias.NONE) != LoraBias.NONE and modules:
        stored = {name: outline for name, outline in stored.items() if not _is_of_wrapper(name)}
    whole = {name: outline for name, outline in stored.items() if _is_of(modules, name)}
    if config.get("bias", LoraBias.NONE) != LoraBias.NONE:
        whole |= {name: outline for name, outline in stored.items() if _is_bias(name)}
    if modules and config.get("ensure_weight_tying"):  # PEFT does not name what is tied to them
        whole |= {n: outline for n, outline in stored.items() if n.startswith(PREFIX) and not n.endswith(_FACTORS)}
    rest = {n: outline for n, outline in stored.items() if n not in whole}
    parameters, targets = _parameters(folder, config, rest)
    layers = _layers(folder, config, rest, parameters)
    named = _in_model(folder, whole)
    of_modules = {name.removeprefix(PREFIX).removesuffix(ROWS): outline for name, outline in own_rows.items()}
    of_tokens = _rows(folder, config, of_modules)
    return SavedAdapter(
        folder, *adapter_folder.base(config), layers, named, modules, of_tokens, parameters, targets, config
    )


def _rows(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline]) -> dict[str, SavedRows]:
    """Of each module. PEFT names modules by ends of their names."""
    named, found = adapter_folder.token_ids(folder, config), dict[str, SavedRows]()
    for name, outline in stored.items():
        try:
            ids = adapter_folder.ids_of(named, name, embedding=True)
        except ValueError:
            ids = ()
        if len(outline.shape) != 2 or outline.shape[0] != len(ids) or not outline.dtype.is_floating_point:
            raise ModelRefused(
                f"adapter {folder}: {printable(name)} has rows of {outline.dtype} {list(outline.shape)}, and "
                f"trainable_token_indices of {CONFIG} are {len(ids)} tokens; take both files from where the adapter "
                "is from"
            )
        found[name] = SavedRows(ids, outline.shape[1])
    if named and not found:
        raise ModelRefused(
            f"adapter {folder}: {CONFIG} has trainable_token_indices, and {WEIGHTS} has no rows of tokens; take both "
            "files from where the adapter is from"
        )
    return found


def _is_of(modules: Sequence[str], name: str) -> bool:
    """Whether a tensor of the file is of a module whose name ends so."""
    if not modules:
        return False
    *parents, _ = name.removeprefix(PREFIX).split(".")
    paths = [".".join(parents[: i + 1]) for i in range(len(parents))]
    return name.startswith(PREFIX) and any(path.endswith(tuple(modules)) for path in paths)


def _is_of_wrapper(name: str) -> bool:
    return name.endswith(".bias") and not _WRAPPER.isdisjoint(name.split("."))


def _in_model(folder: Path, whole: Mapping[str, Outline]) -> dict[str, Outline]:
    """By names in the model. Raises ModelRefused for what has two in the file, and for biases of rows of tokens."""
    found: dict[str, Outline] = {}
    for name, outline in whole.items():
        if name.endswith(_OF_ROWS):
            raise ModelRefused(
                f"adapter {folder}: {printable(name)} is the bias of a module with rows of tokens, which PEFT "
                "computes without; load it with PEFT instead"
            )
        if in_model(name) in found:
            raise ModelRefused(f"adapter {folder}: {printable(name)} has two names in {WEIGHTS}; save it again")
        found[in_model(name)] = outline
    return found


def _is_bias(name: str) -> bool:
    """Whether a tensor of the file is a bias of the base; an adapter's own is another matter."""
    return name.startswith(PREFIX) and name.endswith(".bias") and ".lora_" not in name


def require_factors(folder: Path, names: Iterable[str]) -> None:
    """Raises ModelRefused for tensors of other methods. `names` are those of an adapter's file."""
    other = [name for name in names if not name.endswith(_FACTORS) or not name.startswith(PREFIX)]
    if other:
        raise ModelRefused(
            f"adapter {folder}: {', '.join(map(printable, other[:3]))}{' and more' * (len(other) > 3)}: only factors "
            "A and B of linear layers, magnitudes (LoRA and DoRA), rows of tokens, and what modules_to_save and bias "
            "name are read; load it with PEFT instead"
        )


def _outlines(folder: Path) -> dict[str, Outline]:
    tensor_files.require_known_formats([folder / WEIGHTS])
    found = tensor_files.outlines_of([folder / WEIGHTS])
    if (longest := max(map(len, found), default=0)) > adapter_folder.LONGEST_NAME:
        raise ModelRefused(
            f"adapter {folder}: {WEIGHTS} has a tensor with a name of {longest:,} characters; take the file from "
            "where the adapter is from"
        )
    return found


def _layers(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline], others: Collection[str]
) -> dict[str, AdaptedLayer]:
    """Those that are of modules, which `others` are not."""
    names = _names(stored)
    if not names:
        raise ModelRefused(f"adapter {folder}: {WEIGHTS} has no tensors; save the adapter again")
    of_modules, expressions = [name for name in names if name not in others], Expressions()
    lora_settings.require_targets(folder, config, of_modules, expressions)
    return {name: _layer(folder, config, stored, name, expressions) for name in of_modules}


def _names(stored: Mapping[str, Outline]) -> list[str]:
    named = (name.removeprefix(PREFIX).removesuffix(_A).removesuffix(_B).removesuffix(_MAGNITUDE) for name in stored)
    return list(dict.fromkeys(named))


def _parameters(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline]
) -> tuple[dict[str, AdaptedParameter], list[str]]:
    """Those that are of parameters, and the ends of the names of these."""
    require_factors(folder, stored)
    try:
        targets = parameter_files.targets(config)
        names = [name for name in _names(stored) if parameter_files.is_of_parameter(config, name)]
    except ValueError as error:
        raise ModelRefused(f"adapter {folder}: {CONFIG}: {error}; save the adapter again") from error
    if lengths := [name for name in names if f"{PREFIX}{name}{_MAGNITUDE}" in stored]:
        raise ModelRefused(
            f"adapter {folder}: {printable(lengths[0])} is of a parameter and has magnitudes, which only layers "
            "have; load it with PEFT instead"
        )
    pairs = {name: _pair(folder, stored, name) for name in names}
    return {name: AdaptedParameter(tuple(a.shape), tuple(b.shape)) for name, (a, b) in pairs.items()}, targets


def _pair(folder: Path, stored: Mapping[str, Outline], name: str) -> tuple[Outline, Outline]:
    """Of A and B."""
    a, b = stored.get(f"{PREFIX}{name}{_A}"), stored.get(f"{PREFIX}{name}{_B}")
    if a is None or b is None:
        raise ModelRefused(
            f"adapter {folder}: {printable(name)} has only one of the factors A and B; save the adapter again"
        )
    for outline in (a, b):
        if not outline.dtype.is_floating_point or len(outline.shape) != 2:
            raise ModelRefused(
                f"adapter {folder}: {printable(name)} has factors of {outline.dtype} {list(outline.shape)}, no "
                "matrices of numbers; load it with PEFT instead"
            )
    return a, b


def _layer(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, Outline], name: str, expressions: Expressions
) -> AdaptedLayer:
    rank, alpha, scaling = lora_settings.scaling(folder, config, name, expressions)
    a, b = _pair(folder, stored, name)
    if (a.shape[0], b.shape[1]) != (rank, rank):
        raise ModelRefused(
            f"adapter {folder}: {name} has the rank {str(rank)[:20]} in {CONFIG}, but factors {list(b.shape)} and "
            f"{list(a.shape)}; take both files from where the adapter is from"
        )
    m, dora = stored.get(f"{PREFIX}{name}{_MAGNITUDE}"), bool(config.get("use_dora"))
    if (m.shape if m else None) != ((b.shape[0],) if dora else None):
        raise ModelRefused(
            f"adapter {folder}: {name} has {'no magnitudes' if m is None else f'magnitudes {list(m.shape)}'}, and "
            f"use_dora in {CONFIG} is {str(dora).lower()}; take both files from where the adapter is from"
        )
    return AdaptedLayer(a.shape[1], b.shape[0], a.shape[0], alpha, scaling, dora)


def scaling(begun: SavedAdapter, name: str) -> tuple[int, float, float]:
    """Rank, alpha and scaling of a module or parameter of the model. Raises ModelRefused for what is no number."""
    return lora_settings.scaling(begun.folder, begun.config, name, Expressions())
