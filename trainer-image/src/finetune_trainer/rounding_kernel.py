"""Stochastic rounding on a GPU in one pass: 4 bytes of an element are read and 2 written.

torch's operations would read and write each element three times, for most of the cost of the cast. To import
this takes Triton, which comes with torch for CUDA, and Triton takes a C compiler.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

_ELEMENTS = tl.constexpr(4096)
"""What one program rounds; at most a period of bits."""


@triton.jit(do_not_specialize=["first"])
def _round(numbers, bits, halves, first, count, period):  # type: ignore[no-untyped-def]
    begin = tl.program_id(0).to(tl.int64) * _ELEMENTS
    offsets = begin + tl.arange(0, _ELEMENTS)
    window = (begin + first) % period + tl.arange(0, _ELEMENTS)
    there = offsets < count
    number = tl.load(numbers + offsets, there)
    sums = number + tl.load(bits + window, there)
    sums = tl.where((number & 0x7FFFFFFF) > 0x7F800000, number | 0x400000, sums)  # NaN: CUDA's would become zero
    tl.store(halves + offsets, (sums >> 16).to(tl.int16), there)


def round_to_bf16(source: Tensor, bits: Tensor, target: Tensor, first: int) -> None:
    """Write fp32 `source` [count] into bf16 `target` [count], both contiguous.

    `bits`, int32, are two periods of random bits; element i has those at (first + i) of a period.
    """
    count = source.numel()
    programs = triton.cdiv(count, _ELEMENTS.value)
    if programs:
        _round[programs,](source.view(torch.int32), bits, target.view(torch.int16), first, count, bits.numel() // 2)
