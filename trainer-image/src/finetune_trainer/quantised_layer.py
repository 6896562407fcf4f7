"""Linear layers with a frozen weight that is stored as codes of a byte, of one element or of two.

The codes are an ordinary frozen parameter, which engines shard or copy as any other; the scales, of a block or a row
each, are buffers that each rank has whole. So codes can be cut anywhere, and nothing depends on the storage format.
bitsandbytes' layer changes its codes in place in `eval()` on some CPUs, which ruins shards (docs/adr/0046).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from finetune_api.runtime.choices import BaseFormat
from finetune_api.runtime.run_config import BaseQuantisation

from . import eight_bits, four_bits

Scales = four_bits.BlockScales | eight_bits.RowScales


def require(how: BaseQuantisation, device: torch.device) -> None:
    """Raises Unsupported where what the format needs is absent, or does nothing on `device`."""
    if how.format is not BaseFormat.INT8:
        four_bits.require(device)


def quantise(weight: Tensor, how: BaseQuantisation) -> tuple[Tensor, Scales]:
    """Codes of `weight` [out, in], bytes in one dimension, and scales, on its device.

    Raises ValueError, with a sentence, for numbers that the format does not hold.
    """
    return eight_bits.quantise(weight) if how.format is BaseFormat.INT8 else four_bits.quantise(weight, how)


def whole(codes: Tensor, scales: Scales, how: BaseQuantisation, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The numbers of the codes, as a weight of `shape`."""
    if isinstance(scales, eight_bits.RowScales):
        return eight_bits.whole(codes, scales, shape, dtype)
    return four_bits.dequantised(codes, scales, how.format, shape.numel(), dtype).view(shape)


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is made of its codes where it is needed, forwards and backwards, and not kept."""

    def __init__(self, like: nn.Linear, codes: nn.Parameter, scales: Scales, how: BaseQuantisation) -> None:
        """In place of `like`, whose bias it takes."""
        nn.Module.__init__(self)  # that of nn.Linear would make a weight
        self.in_features, self.out_features = like.in_features, like.out_features
        self.dtype = like.weight.dtype
        """Format of the weight that is computed with."""
        self.how = how
        self.weight, self.bias = codes, like.bias
        self._kind = type(scales)
        for field in fields(scales):
            self.register_buffer(field.name, getattr(scales, field.name), persistent=False)

    def whole(self, codes: Tensor) -> Tensor:
        """The weight [out, in] of the layer's own codes, which may be gathered for the moment."""
        scales = self._kind(**{field.name: getattr(self, field.name) for field in fields(self._kind)})
        return whole(codes, scales, self.how, torch.Size((self.out_features, self.in_features)), self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """From [..., in] to [..., out]."""
        return cast("Tensor", _Product.apply(x, self.weight, self.bias, self.whole))


class _Product(torch.autograd.Function):
    """x Wᵀ + b, which keeps the codes of W for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, bias: Tensor | None, whole: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.whole = whole
        return functional.linear(x, whole(codes), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (codes,) = ctx.saved_tensors
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return gradient @ ctx.whole(codes), None, of_bias, None
