"""The weights in a model's folder as they are trained: quantised ones are seen, and read, in bf16.

Names and shapes are then those of the model before it was quantised, so nothing else has to know of it: not
transformers, which loads them, and not the export, which writes the names of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import dequantise, sources, tensor_files, vocabulary
from .errors import ModelRefused
from .quantisation import KEY, Quantisation, QuantMethod
from .tensor_files import Outline
from .vocabulary import Growth

_SCALES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu})
"""Formats of the scales of FP8."""
_NAN = 255
"""The exponent that is no number."""
_NO_FIT = "download the weight files again, or check that they belong to config.json"


@dataclass(frozen=True)
class _Pair:
    """A weight in two tensors of the files, by their names."""

    values: str
    scales: str
    outline: Outline
    """Of the weight in bf16."""


def outlines(folder: Path) -> dict[str, Outline]:
    """Of all weights, by name. Raises ModelRefused if config.json and the files do not agree on what is quantised."""
    growth = vocabulary.growth(folder)
    found = _in_files(folder)
    return found if growth is None else found | _grown(folder, found, growth)


def _in_files(folder: Path) -> dict[str, Outline]:
    stored, quantisation = tensor_files.outlines(folder), sources.quantisation(folder)
    if quantisation is None:
        _require_unquantised(folder, stored)
        return stored
    pairs = _pairs(folder, stored, quantisation)
    used = {name for pair in pairs.values() for name in (pair.values, pair.scales)}
    rest = {name: each for name, each in stored.items() if name not in used}
    return rest | {name: pair.outline for name, pair in pairs.items()}


def size(folder: Path) -> int:
    """Bytes of all weights."""
    return sum(each.nbytes for each in outlines(folder).values())


@contextmanager
def opened(folder: Path, quantisation: Quantisation | None) -> Iterator[dict[str, Any]]:
    """All weights by name; `weight[...]` reads one from the files, mapped into memory."""
    with ExitStack() as files:
        slices: dict[str, Any] = {}
        for path in tensor_files.weight_files(folder):
            tensors = files.enter_context(tensor_files.opened(path))
            slices |= {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
        if quantisation is not None:
            slices |= {
                name: _Dequantised(folder, pair, slices.pop(pair.values), slices.pop(pair.scales), quantisation)
                for name, pair in _pairs(folder, tensor_files.outlines(folder), quantisation).items()
            }
        growth = vocabulary.growth(folder)
        if growth is not None:
            grown = _grown(folder, _in_files(folder), growth)
            slices |= {name: _WithMeans(slices[name], growth) for name in grown}
        yield slices


def _grown(folder: Path, found: Mapping[str, Outline], growth: Growth) -> dict[str, Outline]:
    """Those of embedding and output head, which are outside of the numbered layers, with the rows of new tokens."""
    ends = [name for name, each in found.items() if each.shape[:1] == (growth.before,) and _may_be_end(name, each)]
    biases = [name for end in ends if found.get(name := f"{end.removesuffix('weight')}bias")]
    grown = {name: Outline(found[name].dtype, (growth.after, *found[name].shape[1:])) for name in (*ends, *biases)}
    if not grown:
        raise ModelRefused(
            f"model {folder}: no weight has the {growth.before:,} rows that config.json says, so the tokens of "
            f"{vocabulary.KEY} get none; leave it out, or choose another model"
        )
    return grown


def _may_be_end(name: str, outline: Outline) -> bool:
    """Whether a weight may be that of embedding or output head."""
    return len(outline.shape) == 2 and not any(map(str.isdecimal, name.split(".")))


class _WithMeans:
    """Stands for the slice of a weight with rows for new tokens: the mean of all others (Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html)."""

    def __init__(self, stored: Any, growth: Growth) -> None:
        self._stored, self._growth = stored, growth

    def __getitem__(self, whole: object) -> Tensor:
        assert whole is ..., "a part of a weight with new rows"
        weight: Tensor = self._stored[...]
        mean = weight.mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, mean.expand(self._growth.after - self._growth.before, *weight.shape[1:])])


class _Dequantised:
    """Stands for the slice of a file that a weight would be."""

    def __init__(self, folder: Path, pair: _Pair, values: Any, scales: Any, quantisation: Quantisation) -> None:
        self._folder, self._pair, self._quantisation = folder, pair, quantisation
        self._values, self._scales = values, scales

    def __getitem__(self, whole: object) -> Tensor:
        assert whole is ..., "a part of a quantised weight"
        scales = self._scales[...]
        if self._quantisation.method is QuantMethod.MXFP4:
            self._require((scales != _NAN).all(), "NaN")
            return dequantise.mxfp4(self._values[...], scales)
        numbers = scales.float()
        self._require((numbers.isfinite() & (numbers >= 0)).all(), "negative numbers, infinity or NaN")
        return dequantise.block_fp8(self._values[...], scales, self._quantisation.block)

    def _require(self, sound: Tensor, what: str) -> None:
        if not sound:
            raise ModelRefused(f"model {self._folder}: {self._pair.scales} has {what}, no scales; {_NO_FIT}")


def _pairs(folder: Path, stored: Mapping[str, Outline], quantisation: Quantisation) -> dict[str, _Pair]:
    """By the names of the weights."""
    mxfp4 = quantisation.method is QuantMethod.MXFP4
    found = _mxfp4(folder, stored) if mxfp4 else _fp8(folder, stored, quantisation.block)
    if not found:
        raise ModelRefused(
            f"model {folder}: its weights are quantised by config.json ({quantisation.method}, {KEY}), but not in "
            f"the weight files; remove {KEY} from config.json if they are those of a copy that is not quantised"
        )
    for name, pair in found.items():
        if name != pair.values and name in stored:
            raise ModelRefused(f"model {folder}: the weight files have {name} and {pair.values}; {_NO_FIT}")
    return found


def _mxfp4(folder: Path, stored: Mapping[str, Outline]) -> dict[str, _Pair]:
    found = {}
    for name in _named(stored, "_blocks", "_scales"):
        values, scales = (f"{name}{suffix}" for suffix in ("_blocks", "_scales"))
        of_values = _stored(folder, stored, values, scales, {torch.uint8})
        of_scales = _stored(folder, stored, scales, values, {torch.uint8})
        if len(of_values.shape) != 4 or of_values.shape[-1] != 16:
            raise ModelRefused(
                f"model {folder}: {values} has the shape {_shape(of_values.shape)}, and blocks are "
                f"experts x outputs x groups x 16; {_NO_FIT}"
            )
        _require_shape(folder, scales, of_scales, of_values.shape[:-1])
        experts, outputs, groups, _ = of_values.shape
        found[name] = _Pair(values, scales, Outline(torch.bfloat16, (experts, groups * 32, outputs)))
    return found


def _fp8(folder: Path, stored: Mapping[str, Outline], block: tuple[int, int]) -> dict[str, _Pair]:
    found = {}
    quantised = [name for name, each in stored.items() if each.dtype == torch.float8_e4m3fn]
    for name in dict.fromkeys([*quantised, *_named(stored, "_scale_inv")]):
        scales = f"{name}_scale_inv"
        of_values = _stored(folder, stored, name, scales, {torch.float8_e4m3fn})
        of_scales = _stored(folder, stored, scales, name, _SCALES)
        if len(of_values.shape) < 2:
            raise ModelRefused(
                f"model {folder}: {name} has the shape {_shape(of_values.shape)}, no blocks; {_NO_FIT}"
            )
        *leading, rows, columns = of_values.shape
        _require_shape(folder, scales, of_scales, (*leading, ceil(rows / block[0]), ceil(columns / block[1])))
        found[name] = _Pair(name, scales, Outline(torch.bfloat16, of_values.shape))
    return found


def _named(stored: Mapping[str, Outline], *suffixes: str) -> list[str]:
    """Names of weights that have a tensor with one of the suffixes."""
    return list(dict.fromkeys(n.removesuffix(end) for n in stored for end in suffixes if n.endswith(end)))


def _stored(folder: Path, stored: Mapping[str, Outline], name: str, other: str, formats: Set[torch.dtype]) -> Outline:
    found = stored.get(name)
    if found is None:
        raise ModelRefused(f"model {folder}: the weight files have {other}, but not {name}; {_NO_FIT}")
    if found.dtype not in formats:
        raise ModelRefused(
            f"model {folder}: {name}, which belongs to {other}, has the format {found.dtype}, not "
            f"{' or '.join(sorted(str(each) for each in formats))}; {_NO_FIT}"
        )
    return found


def _require_shape(folder: Path, name: str, found: Outline, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        raise ModelRefused(
            f"model {folder}: {name} has the shape {_shape(found.shape)}, and its blocks are {_shape(wanted)}; "
            f"{_NO_FIT}"
        )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "of one number"


def _require_unquantised(folder: Path, stored: Mapping[str, Outline]) -> None:
    for suffix, of_scales in (("_blocks", "_scales"), ("", "_scale_inv")):
        for name in _named(stored, of_scales):
            values, scales = stored.get(f"{name}{suffix}"), f"{name}{of_scales}"
            if values is not None and values.dtype in (torch.uint8, torch.float8_e4m3fn):
                raise ModelRefused(
                    f"model {folder}: {name}{suffix} is quantised, with its scales in {scales}, but config.json "
                    f"has no {KEY}; take config.json from where the weights are from"
                )
