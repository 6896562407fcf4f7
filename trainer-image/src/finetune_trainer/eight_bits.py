"""Weights in eight bits an element: integers, and a scale for each row. Used by quantised_layer.py.

The numbers are those of LLM.int8 (Dettmers et al. 2022, 2208.07339): the largest absolute value of a row is 127.
Inputs are not quantised, so none of their columns needs a product of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST = 127
_SMALLEST = 1e-36
"""A row of numbers below it is a row of zeros: the quotient for its codes would not be finite."""
_PART = 1 << 18
"""Elements that a CPU quantises at a time: the intermediate numbers stay in its cache."""


@dataclass(frozen=True)
class RowScales:
    """What gives numbers to the codes of a weight."""

    rows: Tensor
    """fp32 [out]"""


def quantise(weight: Tensor) -> tuple[Tensor, RowScales]:
    """Codes of `weight` [out, in], bytes [out * in], and scales, on its device.

    Raises ValueError, with a sentence, for numbers that are not finite.
    """
    largest = torch.linalg.vector_norm(weight, float("inf"), dim=1, dtype=torch.float32)
    if not (largest.is_meta or largest.isfinite().all()):
        raise ValueError("it has numbers that are not finite; download the model again, or choose another one")
    to_codes = torch.where(largest >= _SMALLEST, _LARGEST / largest, 0.0)[:, None]
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    rows = max(1, _PART // weight.shape[1]) if weight.device.type == "cpu" else len(weight)
    for part, factors, found in zip(*(torch.split(each, rows) for each in (weight, to_codes, codes)), strict=True):
        found.copy_((part * factors).round_().clamp_(-_LARGEST, _LARGEST))
    return codes.view(torch.uint8).view(-1), RowScales(largest / _LARGEST)


def whole(codes: Tensor, scales: RowScales, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of `shape`: products in fp32 that are rounded to `dtype`."""
    found = torch.empty(shape, dtype=dtype, device=codes.device)
    return torch.mul(codes.view(torch.int8).view(shape), scales.rows[:, None], out=found)
