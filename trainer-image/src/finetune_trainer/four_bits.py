"""Weights in four bits an element, as bitsandbytes quantises them (Dettmers et al. 2023). Used by quantised_layer.py.

64 elements in a row share a scale, their largest absolute value, and each is the nearest of 16 numbers times it. With
double quantisation the scales are of eight bits, in blocks of 256 with a mean and scales of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from finetune_api.runtime.choices import BaseFormat
from finetune_api.runtime.run_config import BaseQuantisation

from .errors import Unsupported

BLOCK = 64
"""Elements that share a scale."""
_SCALES = 256
"""Scales that share one."""
_MOST_OFF = 0.01
"""Share of scales that double quantisation may lose."""
_PART = 1 << 18
"""Elements that a CPU quantises at a time: the intermediate numbers stay in its cache. A multiple of BLOCK."""


@dataclass(frozen=True)
class BlockScales:
    """What gives numbers to the codes of a weight."""

    scales: Tensor
    """fp32 [blocks], or codes of bytes."""
    mean: Tensor | None = None
    """fp32 []; of the scales, which are stored without it."""
    outer: Tensor | None = None
    """fp32: scales of the scales."""
    table: Tensor | None = None
    """fp32 [256]: the numbers of their codes."""

    def whole(self) -> Tensor:
        """fp32 [blocks]."""
        if self.table is None:
            return self.scales
        found = torch.ops.bitsandbytes.dequantize_blockwise(
            self.scales, self.outer, self.table, _SCALES, torch.float32
        )
        return cast("Tensor", found + self.mean)


def quantise(weight: Tensor, how: BaseQuantisation) -> tuple[Tensor, BlockScales]:
    """Codes of two elements each, bytes [elements / 2], and scales, on the device of `weight`.

    Raises ValueError, with a sentence, for numbers that the format does not hold.
    """
    bnb = library()
    elements = weight.reshape(-1)
    parts = torch.split(elements, _PART if weight.device.type == "cpu" else max(1, len(elements)))
    quantised = [torch.ops.bitsandbytes.quantize_4bit(part, BLOCK, how.format, torch.uint8) for part in parts]
    codes = torch.cat([codes.view(-1) for codes, _ in quantised])
    scales = torch.cat([scales for _, scales in quantised])
    if not (scales.is_meta or scales.isfinite().all()):
        raise ValueError("it has numbers that are not finite; download the model again, or choose another one")
    if not how.double:
        return codes, BlockScales(scales)
    mean, table = scales.mean(), _table().to(scales.device)
    small, state = bnb.quantize_blockwise(scales - mean, code=table, blocksize=_SCALES)
    found = BlockScales(small, mean, state.absmax, table)
    if not scales.is_meta and float((_off(found.whole(), scales)).mean()) > _MOST_OFF:
        raise ValueError(
            "it has outliers beside which most scales would be lost in eight bits; set "
            "training.quantization.double_quant to false"
        )
    return codes, found


def _off(found: Tensor, exact: Tensor) -> Tensor:
    """1.0 where a scale is off by more than half; a block of zeros has none."""
    return ((found - exact).abs() > exact / 2).logical_and(exact > 0).float()


@cache
def library() -> Any:
    """bitsandbytes.functional, whose import registers the operations. Raises ImportError."""
    from bitsandbytes import functional as found  # noqa: PLC0415 - an optional part of the trainer

    return found


@cache
def _table() -> Tensor:
    """fp32 [256], on the CPU: bitsandbytes makes its own on the device that asks first, and keeps it."""
    return cast("Tensor", library().create_dynamic_map())


def require(device: torch.device) -> None:
    """Raises Unsupported where bitsandbytes is absent, or does nothing on `device`."""
    try:
        codes, scales = quantise(
            torch.ones(1, BLOCK, device=device), BaseQuantisation(format=BaseFormat.NF4, double=True)
        )
        dequantised(codes, scales, BaseFormat.NF4, BLOCK, torch.float32)
    except Exception as error:
        raise Unsupported(
            f"training.use_qlora needs bitsandbytes, which does not work on {device.type} here: {error}; install the "
            "extra trainer of this project with a build of bitsandbytes for this device, or set "
            "training.quantization.format to int8, which does without, or train LoRA (training.mode: lora, "
            "use_qlora: false)"
        ) from error


def dequantised(codes: Tensor, scales: BlockScales, how: str, elements: int, dtype: torch.dtype) -> Tensor:
    """[elements]. Not in the shape of a weight: bitsandbytes' kernel for CPUs then takes wrong scales.

    It does so for rows of other than a multiple of 64 elements (0.50.2).
    """
    even = 2 * len(codes)
    shape = (even // BLOCK, BLOCK) if even % BLOCK == 0 else (1, even)
    found: Tensor = torch.ops.bitsandbytes.dequantize_4bit(codes, scales.whole(), BLOCK, how, shape, dtype)
    return found.view(-1)[:elements]
