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
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar, NamedTuple, cast

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from .quantised_layer import QuantisedLinear

_log = logging.getLogger(__name__)


def use(settings: LoraConfig, layer: type[LoraLinear]) -> None:
    """Let PEFT make a `layer` of every layer that is nn.Linear, Conv1D or QuantisedLinear and no more."""
    made: Any = dict.fromkeys((nn.Linear, Conv1D), partial(_adapted, layer))  # its annotation says they are classes
    settings._register_custom_module(made)  # noqa: SLF001 - PEFT documents it


def _adapted(
    layer: type[LoraLinear], target: nn.Module, name: str, config: LoraConfig, **options: Any
) -> LoraLinear | None:
    """None where PEFT should choose the layer: what is stored or computed in another way is of a subclass."""
    if type(target).forward not in (nn.Linear.forward, Conv1D.forward, QuantisedLinear.forward):
        if config.use_dora:
            raise ValueError(f"a layer of {type(target).__name__} gets none with use_dora")
        return None
    config.fan_in_fan_out = isinstance(target, Conv1D)
    return layer(target, name, config, is_target_conv_1d_layer=config.fan_in_fan_out, **options)


class LoraLinear(lora.Linear):
    """PEFT's layer, with one rounding where one adapter is in the format of its base and its input."""

    variant: ClassVar[type[Any]] = type(None)
    """Of PEFT's variants of LoRA, the one that `product` computes."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """From [..., in] to [..., out]."""
        base: Any = self.get_base_layer()
        if args or kwargs or not self._is_supported(x, base):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        result = self.product(x.reshape(-1, x.shape[-1]), name)
        return result.view(*x.shape[:-1], result.shape[-1])

    def product(self, x: Tensor, name: str) -> Tensor:
        """From [rows, in] to [rows, out], with the adapter `name`."""
        base: Any = self.get_base_layer()
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        result: Tensor = _AdaptedProduct.apply(x, base.weight, a, b, self.factors(name))
        if base.bias is not None:
            result += base.bias  # inside the update, it would round that to its own grid
        return result

    def factors(self, name: str) -> Factors:
        dropout = self.lora_dropout[name]
        share = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return Factors(self.scaling[name], share, self.whole)

    @property
    def whole(self) -> Callable[[Tensor], Tensor]:
        """From the parameter of the base to its weight [out, in]."""
        base: Any = self.get_base_layer()
        if isinstance(base, QuantisedLinear):
            return base.whole
        return Tensor.t if self.fan_in_fan_out else _itself

    def _is_supported(self, x: Tensor, base: Any) -> bool:
        """Whether it is a matrix product with one adapter, all in one format."""
        names = self.active_adapters
        if self.disable_adapters or self.merged or _autocast(x.device.type) or len(names) != 1:
            return False
        name = names[0]
        if not isinstance(self.lora_variant.get(name), self.variant):
            return False
        if name not in self.lora_A or self.lora_bias[name] or base.weight.requires_grad:
            return False
        dtype = base.dtype if isinstance(base, QuantisedLinear) else base.weight.dtype
        return x.dtype == dtype == self.lora_A[name].weight.dtype == self.lora_B[name].weight.dtype


def _itself(weight: Tensor) -> Tensor:
    return weight


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the meta device has none


class Factors(NamedTuple):
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
    def forward(ctx: Any, x: Tensor, stored: Tensor, a: Tensor, b: Tensor, factors: Factors) -> Tensor:
        dropped, mask = dropped_input(x, factors)
        low = (dropped @ a.t()).mul_(factors.scaling)
        ctx.save_for_backward(x, mask, stored, a, b, low)
        ctx.factors = factors
        return _sum(x, factors.whole(stored), low, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_a, of_b = gradients(gradient, ctx.saved_tensors, ctx.factors, ctx.needs_input_grad)
        return of_x, None, of_a, of_b, None


def dropped_input(x: Tensor, factors: Factors) -> tuple[Tensor, Tensor | None]:
    """dropout(x), and its mask if there is dropout."""
    return torch.native_dropout(x, factors.dropped, True) if factors.dropped else (x, None)


def gradients(
    gradient: Tensor, saved: Sequence[Any], factors: Factors, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of x, A and B, of the sum W x + s · B A dropout(x), where they are `needed` (by the forward's arguments)."""
    x, mask, stored, a, b, low = saved
    of_low = (gradient @ b).mul_(factors.scaling)
    of_x = of_a = of_b = None
    if needed[0]:
        of_x = _masked(of_low @ a, mask, factors).addmm_(gradient, factors.whole(stored))
    if needed[2]:
        of_a = _product(of_low, _masked(x, mask, factors))
    if needed[3]:
        of_b = _product(low, gradient).t()
    return of_x, of_a, of_b


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


def _masked(x: Tensor, mask: Tensor | None, factors: Factors) -> Tensor:
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
