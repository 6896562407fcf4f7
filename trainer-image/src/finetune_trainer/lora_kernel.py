"""A product in fp32 plus a product of low rank, rounded once, in one pass: 4 bytes of an element are read, 2 written.

cuBLAS cannot do it: its kernels for Hopper round a product to bf16 before they add to it, and so lose what is smaller
than half a step of bf16 (docs/adr/0045). To import this takes Triton, which comes with torch for CUDA, and Triton
takes a C compiler.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import language as tl

_ROWS, _COLUMNS = tl.constexpr(64), tl.constexpr(128)
"""What one program writes."""
_RANKS = tl.constexpr(16)
"""What a matrix unit multiplies at least: a higher rank takes several products."""


@triton.jit(do_not_specialize=["rows"])
def _add(base, low, up, total, rows, columns, rank):  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    row = tl.program_id(0).to(tl.int64) * _ROWS + tl.arange(0, _ROWS)[:, None]
    column = tl.program_id(1) * _COLUMNS + tl.arange(0, _COLUMNS)[None, :]
    there = (row < rows) & (column < columns)
    sums = tl.load(base + row * columns + column, there, other=0.0)
    for first in range(0, rank, _RANKS):
        across, down = first + tl.arange(0, _RANKS)[None, :], first + tl.arange(0, _RANKS)[:, None]
        left = tl.load(low + row * rank + across, (row < rows) & (across < rank), other=0.0)
        right = tl.load(up + column * rank + down, (column < columns) & (down < rank), other=0.0)
        sums = tl.dot(left, right, sums)
    tl.store(total + row * columns + column, sums.to(total.dtype.element_ty), there)


def rounded_sum(base: Tensor, low: Tensor, up: Tensor) -> Tensor:
    """base + low upᵀ [rows, columns], in the format of `low`, which is bf16 or fp16.

    Of base [rows, columns], in fp32, low [rows, rank] and up [columns, rank].
    """
    base, low, up = (each.contiguous() for each in (base, low, up))
    (rows, columns), rank = base.shape, low.shape[1]
    total = torch.empty_like(base, dtype=low.dtype)
    if base.numel():
        programs = triton.cdiv(rows, _ROWS.value), triton.cdiv(columns, _COLUMNS.value)
        _add[programs](base, low, up, total, rows, columns, rank)
    return total
