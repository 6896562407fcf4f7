"""The forward pass of adapters on one parameter for many matrices, such as the fused experts of a mixture.

PEFT's wrapper builds W + s · B A of all experts in every forward pass, keeps it for the backward pass, and makes the
gradient of all of it there; in bf16 the sum is rounded to the grid of W, where early updates are lost. Here the
module sees a `LowRankSum` in place of its parameter. In a product it takes part as the sum would,
x (W + s L R) = x W + s (x L) R, so nothing of the size of W is made. That holds for every implementation of experts
that transformers may choose, because all of them index, transpose and multiply. Whatever else is done makes the sum.

Layers are PEFT's in everything else: their names, parameters and files. Called by adapters.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

_ALIGNED = 16
"""Bytes that the strides of a grouped product have to be a multiple of."""
_OF_BASE = frozenset({"device", "dim", "dtype", "is_meta", "ndim", "requires_grad", "shape", "size"})
"""What the sum has in common with its base."""


def use(model: nn.Module) -> None:
    """Let the wrappers of parameters that PEFT has made in `model` compute so."""
    for module in model.modules():
        if type(module) is ParamWrapper:  # PEFT recognises them by this name while it makes them
            module.__class__ = FusedLora


class FusedLora(ParamWrapper):
    """PEFT's wrapper, which gives its module a sum in place of the parameter while that computes."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1:
            return super().forward(x, *args, **kwargs)
        with _replaced_in(self.get_base_layer(), self.parameter_name, self.adapted(names[0])):
            return self.base_layer(x, *args, **kwargs)

    def adapted(self, name: str) -> LowRankSum:
        """The parameter with the adapter `name`."""
        left, right, scaling = self.get_delta_factors(name)  # type: ignore[no-untyped-call]
        missing = -left.shape[-1] % (_ALIGNED // left.dtype.itemsize)
        left, right = functional.pad(left, (0, missing)), functional.pad(right, (0, 0, 0, missing))
        return LowRankSum(self.get_param(), left.contiguous(), right.contiguous(), scaling)  # type: ignore[no-untyped-call]


@contextmanager
def _replaced_in(module: nn.Module, name: str, value: LowRankSum) -> Iterator[None]:
    """`module` has `value` under the `name` of a parameter, which stays where engines look for it."""
    vars(module)[name] = value  # Python looks there before nn.Module is asked for its parameters
    try:
        yield
    finally:
        del vars(module)[name]


class LowRankSum:
    """W + s · L R of one matrix [m, n] or of many [.., m, n], from W, L [.., m, rank] and R [.., rank, n]."""

    def __init__(self, base: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
        self.base, self.left, self.right, self.scaling = base, left, right, scaling

    def whole(self) -> Tensor:
        """All numbers of it, for what is no product."""
        return torch.add(self.base, self.left @ self.right, alpha=self.scaling)

    def transpose(self, first: int, second: int) -> LowRankSum | Tensor:
        last = self.base.ndim - 1
        if {first % (last + 1), second % (last + 1)} != {last - 1, last}:
            return self.whole().transpose(first, second)
        base, left, right = (each.transpose(-2, -1) for each in (self.base, self.right, self.left))
        return LowRankSum(base, left, right, self.scaling)

    @property
    def mT(self) -> LowRankSum | Tensor:  # noqa: N802 - torch's name
        return self.transpose(-2, -1)

    @property
    def T(self) -> LowRankSum | Tensor:  # noqa: N802 - torch's name
        return self.t() if self.base.ndim == 2 else self.whole().T

    def t(self) -> LowRankSum | Tensor:
        return self.transpose(0, 1)

    def __getitem__(self, index: Any) -> LowRankSum | Tensor:
        """Of many matrices one or some; of anything else its numbers."""
        if self.base.ndim < 3 or not isinstance(index, int | slice | Tensor):
            return self.whole()[index]
        return LowRankSum(self.base[index], self.left[index], self.right[index], self.scaling)

    def __len__(self) -> int:
        return len(self.base)

    def __matmul__(self, other: Tensor) -> Tensor:
        found: Tensor = torch.matmul(self, other)  # type: ignore[arg-type]
        return found

    def __add__(self, other: Any) -> Tensor:
        return torch.add(self.whole(), other)

    def __mul__(self, other: Any) -> Tensor:
        return torch.mul(self.whole(), other)

    __radd__, __rmul__ = __add__, __mul__

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base if name in _OF_BASE else self.whole(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if (rule := _rule(func)) is not None and (found := rule(func, *args, **given)) is not None:
            return found
        args, given = tree_map(lambda each: each.whole() if isinstance(each, cls) else each, (args, given))
        return func(*args, **given)


def _rule(func: Any) -> Callable[..., Tensor | None] | None:
    if func is functional.linear:
        return _linear
    if func in _PRODUCTS:
        return _product
    return _grouped if getattr(func, "__name__", "") in _GROUPED else None


_PRODUCTS = frozenset({torch.bmm, torch.matmul, torch.mm, Tensor.bmm, Tensor.matmul, Tensor.mm})
_GROUPED = frozenset({"_grouped_mm", "grouped_mm", "grouped_mm_fallback"})
"""torch's, and what transformers calls where that has no kernel."""


def _linear(func: Any, x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    """x (W + s L R)ᵀ + b."""
    if not isinstance(weight, LowRankSum) or weight.base.ndim != 2:
        return None
    low = func(x, weight.right).mul(weight.scaling)
    found: Tensor = func(x, weight.base, bias) + func(low, weight.left)
    return found


def _product(func: Any, one: Any, other: Any) -> Tensor | None:
    found: Tensor
    if isinstance(one, Tensor) and isinstance(other, LowRankSum):
        found = func(one, other.base) + func(func(one, other.left).mul(other.scaling), other.right)
        return found
    if isinstance(one, LowRankSum) and isinstance(other, Tensor):
        found = func(one.base, other) + func(one.left, func(one.right, other).mul(one.scaling))
        return found
    return None


def _grouped(func: Any, x: Any, weight: Any, offs: Any = None, **others: Any) -> Tensor | None:
    """Rows of x, each times the matrix of the group that it is in."""
    if isinstance(x, LowRankSum) or weight.base.ndim != 3 or any(each is not None for each in others.values()):
        return None
    low = func(x, weight.left, offs=offs).mul(weight.scaling)
    found: Tensor = func(x, weight.base, offs=offs) + func(low, weight.right, offs=offs)
    return found
