"""Formulas that make bf16 weights of quantised ones. Called by weights.py, for one tensor at a time.

Codes are looked up in tables, by `index_select`: torch converts FP8 on a CPU several times slower. Only a part of the
weight, an expert or a row of blocks, is there in another format at the same time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the codes of four bits."""


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """The weights of experts, experts x inputs x outputs, in bf16, without rounding.

    `blocks` is experts x outputs x (inputs / 32) x 16 bytes, each with two values, that of the lower four bits first;
    `scales` is experts x outputs x (inputs / 32) exponents. A value is E2M1(code) * 2 ** (scale - 127): OCP
    Microscaling Formats (MX) Specification 1.0. Checkpoints of gpt-oss have outputs before inputs, the models of
    transformers inputs before outputs.
    """
    experts, outputs, groups, _ = blocks.shape
    pairs = torch.tensor([(_E2M1[code % 16], _E2M1[code // 16]) for code in range(256)]).to(torch.bfloat16)
    powers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu).to(torch.bfloat16)
    whole = torch.empty(experts, groups * 32, outputs, dtype=torch.bfloat16)
    for target, codes, exponents in zip(whole, blocks, scales, strict=True):
        values = _looked_up(pairs.view(torch.int32).flatten(), codes).view(torch.bfloat16)
        values *= _looked_up(powers, exponents)[..., None]
        target[:] = values.flatten(1).T
    return whole


def block_fp8(weight: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Each number of `weight`, in E4M3, times the scale of its block, multiplied in fp32 and rounded to bf16.

    The last two dimensions of `weight` are rows and columns, those of `scales` blocks of `block` rows and columns;
    the last blocks may be cut off. As weight_dequant in inference/kernel.py of deepseek-ai/DeepSeek-V3.
    """
    height, width = block
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    whole = torch.empty(weight.shape, dtype=torch.bfloat16)
    matrices = zip(_matrices(whole), _matrices(weight.view(torch.uint8)), _matrices(scales), strict=True)
    for target, codes, of_blocks in matrices:
        factors = of_blocks.float().repeat_interleave(width, 1)[:, : codes.shape[1]]
        for number, row in enumerate(factors):
            rows = slice(number * height, (number + 1) * height)
            target[rows] = _looked_up(table, codes[rows]) * row
    return whole


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    return table.index_select(0, codes.flatten().int()).view(codes.shape)


def _matrices(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, *tensor.shape[-2:])
