"""What config.json says of quantised weights, and which of them are read. Called before weights are downloaded.

`weights.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from .errors import ModelRefused

KEY = "quantization_config"


class QuantMethod(StrEnum):
    """Methods that are read, by their name in `quant_method`."""

    MXFP4 = "mxfp4"
    FP8 = "fp8"


@dataclass(frozen=True)
class Quantisation:
    method: QuantMethod
    block: tuple[int, int] = (1, 32)
    """Rows and columns that share a scale."""


def of(folder: Path, config: Mapping[str, Any]) -> Quantisation | None:
    """The quantisation of the folder's weights by its config.json; None if they are not quantised.

    Raises ModelRefused for one that is not read.
    """
    found = None
    parts = {"": config} | {f"{key}.": part for key, part in config.items() if isinstance(part, dict)}
    for prefix, part in parts.items():
        entry = part.get(KEY)
        if entry is None or entry == {}:
            continue
        if not isinstance(entry, dict):
            raise ModelRefused(
                f"model {folder}: {prefix}{KEY} in config.json is {entry!r}, no JSON object; take config.json from "
                "where the weights are from"
            )
        found = _of_entry(folder, prefix, entry)
    return found


def _of_entry(folder: Path, prefix: str, entry: Mapping[str, Any]) -> Quantisation:
    method, what, block = entry.get("quant_method") or "bitsandbytes", "", entry.get("weight_block_size")
    if prefix:
        what = "of a part of the model"
    elif method == QuantMethod.MXFP4:
        return Quantisation(QuantMethod.MXFP4)
    elif method == QuantMethod.FP8 and not _is_block(block):
        what = f"with weight_block_size {block!r}"
    elif method == QuantMethod.FP8 and entry.get("activation_scheme", "dynamic") != "dynamic":
        what = f"with activation_scheme {entry['activation_scheme']!r}"
    elif method == QuantMethod.FP8:
        return Quantisation(QuantMethod.FP8, tuple(block))  # type: ignore[arg-type]  # _is_block
    raise ModelRefused(
        f"model {folder}: its weights are quantised ({f'{method} {what}'.rstrip()}, {prefix}{KEY} in config.json), "
        f"and this version reads mxfp4 and fp8 in blocks only, described for the whole model; {_WAY_OUT}"
    )


def _is_block(found: object) -> bool:
    return isinstance(found, list) and len(found) == 2 and all(type(side) is int and side > 0 for side in found)


_WAY_OUT = (
    "use the model that it was made from, which is usually published under the name without the method, or a copy of "
    "it in bf16"
)
