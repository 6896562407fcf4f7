"""The forward and backward pass of a linear layer with a LoRA adapter: y = s · B A dropout(x) + W x + b.

In bf16 and fp16 the order decides whether early updates are seen at all. The first ones are smaller than half a step
of the format at W x, so a sum with W x that is rounded already loses them, whichever format it is made in. Here the
update is added to the product of the base where that is accumulated, in fp32, and the sum is rounded once. Gradients
of A and B are fp32, from inputs in the compute format.

The layers are PEFT's in everything else: their names, parameters and files. Called by adapters.py.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from .four_bits import Linear4bit

_log = logging.getLogger(__name__)


def use(settings: LoraConfig) -> None:
    """Let PEFT make a `LoraLinear` of every layer that is nn.Linear, Conv1D or Linear4bit and no more."""
    made: Any = dict.fromkeys((nn.Linear, Conv1D), _adapted)  # PEFT calls what its annotation says are classes
    settings._register_custom_module(made)  # noqa: SLF001 - PEFT documents it


def _adapted(target: nn.Module, name: str, config: LoraConfig, **options: Any) -> LoraLinear | None:
    """None where PEFT should choose the layer: what is stored or computed in another way is of a subclass."""
    if type(target).forward not in (nn.Linear.forward, Conv1D.forward, Linear4bit.forward):
        return None
    config.fan_in_fan_out = isinstance(target, Conv1D)
    return LoraLinear(target, name, config, is_target_conv_1d_layer=config.fan_in_fan_out, **options)


class LoraLinear(lora.Linear):
    """PEFT's layer, with one rounding where one adapter is in the format of its base and its input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """From [..., in] to [..., out]."""
        base: Any = self.get_base_layer()
        if args or kwargs or not self._is_supported(x, base):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        a, b, dropout = self.lora_A[name], self.lora_B[name], self.lora_dropout[name]
        share = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        factors = _Factors(self.scaling[name], share, self._whole)
        result: Tensor = _AdaptedProduct.apply(x.reshape(-1, x.shape[-1]), base.weight, a.weight, b.weight, factors)
        if base.bias is not None:
            result += base.bias  # inside the update, it would round that to its own grid
        return result.view(*x.shape[:-1], result.shape[-1])

    @property
    def _whole(self) -> Callable[[Tensor], Tensor]:
        """From the parameter of the base to its weight [out, in]."""
        base: Any = self.get_base_layer()
        if isinstance(base, Linear4bit):
            return base.whole
        return Tensor.t if self.fan_in_fan_out else _itself

    def _is_supported(self, x: Tensor, base: Any) -> bool:
        """Whether it is a matrix product with one adapter, all in one format."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or _autocast(x.device.type) or len(names) != 1:
            return False
        name = names[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias[name] or base.weight.requires_grad:
            return False
        dtype = base.dtype if isinstance(base, Linear4bit) else base.weight.dtype
        return x.dtype == dtype == self.lora_A[name].weight.dtype == self.lora_B[name].weight.dtype


def _itself(weight: Tensor) -> Tensor:
    return weight


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none


class _Factors(NamedTuple):
    scaling: float
    dropped: float
    """Share of the input that A does not see."""
    whole: Callable[[Tensor], Tensor]
    """From what is stored of W to W."""


class _AdaptedProduct(torch.autograd.Function):
    """Of x [rows, in], what is stored of W [out, in], A [rank, in] and B [out, rank].

    Saved are what is stored of W, x, which layers with the same input share, s · A dropout(x), and a mask of a byte
    per element.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Tensor, a: Tensor, b: Tensor, factors: _Factors) -> Tensor:
        dropped, mask = torch.native_dropout(x, factors.dropped, True) if factors.dropped else (x, None)
        low = (dropped @ a.t()).mul_(factors.scaling)
        ctx.save_for_backward(x, mask, stored, a, b, low)
        ctx.factors = factors
        return _sum(x, factors.whole(stored), low, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, stored, a, b, low = ctx.saved_tensors
        of_low = (gradient @ b).mul_(ctx.factors.scaling)
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            of_x = _masked(of_low @ a, mask, ctx.factors).addmm_(gradient, ctx.factors.whole(stored))
        if ctx.needs_input_grad[2]:
            of_a = _product(of_low, _masked(x, mask, ctx.factors))
        if ctx.needs_input_grad[3]:
            of_b = _product(low, gradient).t()
        return of_x, None, of_a, of_b, None


def _sum(x: Tensor, weight: Tensor, low: Tensor, b: Tensor) -> Tensor:
    """x Wᵀ + low Bᵀ [rows, out], rounded once."""
    if x.device.type != "cuda" or x.dtype.itemsize >= torch.float32.itemsize:
        return (low @ b.t()).addmm_(x, weight.t())
    base = torch.mm(x, weight.t(), out_dtype=torch.float32)  # addmm of cuBLAS rounds it before it adds
    if (kernel := _kernel(x.device)) is not None:
        return kernel(base, low, b)
    return torch.add(base, low @ b.t(), out=torch.empty_like(base, dtype=x.dtype))


@cache
def _kernel(device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """The kernel for the GPU, where it can be compiled; without it torch's operations give the same numbers later."""
    try:
        kernel = importlib.import_module(".lora_kernel", __package__).rounded_sum
        kernel(torch.zeros(1, 1, device=device), *torch.zeros(2, 1, 1, device=device, dtype=torch.bfloat16))
    except Exception as error:  # noqa: BLE001 - of Triton, its compilers or the driver; nothing depends on it
        _log.warning("LoRA adds its updates without Triton (%s), which makes a step up to a tenth slower.", error)
        return None
    return cast("Callable[[Tensor, Tensor, Tensor], Tensor]", kernel)


def _masked(x: Tensor, mask: Tensor | None, factors: _Factors) -> Tensor:
    """`x` as dropout gave or would give it."""
    if mask is None:
        return x
    kept = 1 - factors.dropped
    return cast("Tensor", torch.ops.aten.native_dropout_backward(x, mask, 1 / kept if kept else 0.0))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right [m, n] of [rows, m] and [rows, n], in fp32 or the wider format of both."""
    if left.dtype.itemsize >= torch.float32.itemsize:
        return left.t() @ right
    if left.device.type == "cuda":
        return torch.mm(left.t(), right, out_dtype=torch.float32)
    high = left.t() @ right
    rest = torch.addmm(high, left.t(), right, beta=-1)  # what the rounding of `high` has taken away
    return high.float().add_(rest)
