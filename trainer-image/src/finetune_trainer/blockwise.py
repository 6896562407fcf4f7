"""fp32 numbers as bytes, in blocks of 256 with a scale each (Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization"). Used by adamw_8bit.py.

The scale of a block is its largest absolute value, and each number is the nearest of 256 between -1 and 1, or 0 and
1, times it. The 256 are bitsandbytes' dynamic ones: decades from 1 to 1e-7, with more of them the larger they are.

Kernels are bitsandbytes', but for quantising on a CPU: its own there (0.50.2) rounds through a table of 65,536 even
steps, so that zero comes back as 2e-5 of the largest number. Ours finds the nearest in a table by the upper 16 bits
of a number, of which a cell contains at most one midpoint of two codes, and compares with that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import Unsupported
from .four_bits import library

BLOCK = 256
_TINY = torch.finfo(torch.float32).tiny
_UPPER = 16
"""Bits of a number that its cell is made of: sign, exponent and seven bits of the fraction."""


class Codebook:
    """The numbers of the 256 codes, in rising order, on one device."""

    def __init__(self, device: torch.device, *, signed: bool) -> None:
        """Raises ImportError without bitsandbytes."""
        numbers: Tensor = library().create_dynamic_map(signed=signed)
        self.zero = int(numbers.abs().argmin())
        """Code of 0."""
        self._numbers = numbers.to(device)
        self._midpoints = torch.cat([(numbers[1:] + numbers[:-1]) / 2, torch.tensor([torch.inf])])
        self._cells = torch.searchsorted(self._midpoints[:-1], _least()).to(torch.uint8)

    def quantise(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of bytes [n] and scales in fp32 [n / 256] of `values` in fp32 [n]; n is a multiple of 256.

        A block of zeros has the scale 0. On a CPU it takes 20 bytes an element in the meantime.
        """
        if values.device.type == "cpu":
            return self._quantise_on_cpu(values)
        codes, scales = torch.ops.bitsandbytes.quantize_blockwise(values, self._numbers, BLOCK)
        return codes, scales

    def _quantise_on_cpu(self, values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = values.view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1)
        shares = (blocks / scales.clamp(min=_TINY).unsqueeze(1)).view(-1)
        cells = (shares.view(torch.int32) >> _UPPER).add_(1 << (31 - _UPPER))
        codes = self._cells.index_select(0, cells)
        above = shares > self._midpoints.index_select(0, codes.int())
        return codes.add_(above), scales

    def dequantise(self, codes: Tensor, scales: Tensor) -> Tensor:
        """fp32 [n] of codes [n] and scales [n / 256], rounded up."""
        values: Tensor = torch.ops.bitsandbytes.dequantize_blockwise(
            codes, scales, self._numbers, BLOCK, torch.float32
        )
        return values

    def shares(self, codes: Tensor) -> Tensor:
        """fp32, in the shape of `codes`: the numbers without their scales."""
        return self._numbers[codes.int()]


def _least() -> Tensor:
    """fp32 [65536]: the smallest number of each cell, by its upper 16 bits as a signed integer, from the least."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32) << _UPPER
    bits[: 1 << 15] |= (1 << _UPPER) - 1  # of negative numbers the smallest has the largest bits
    return bits.view(torch.float32).nan_to_num(nan=torch.inf)


def require(device: torch.device) -> None:
    """Raises Unsupported where bitsandbytes is absent, or does nothing on `device`."""
    try:
        codebook = Codebook(device, signed=True)
        codebook.dequantise(*codebook.quantise(torch.ones(BLOCK, device=device)))
    except Exception as error:
        raise Unsupported(
            f"hyperparameters.optim: adamw_8bit needs bitsandbytes, which does not work on {device.type} here: "
            f"{error}; install the extra trainer of this project with a build of bitsandbytes for this device, or "
            "set hyperparameters.optim to adamw"
        ) from error
