"""How much of a small update a layer with an adapter lets through, in the format of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

UPDATE = 1e-3
"""Size of an early update, of the output of the base."""


@torch.no_grad()
def kept(layer: Any, x: Tensor) -> float:
    """Projection of what an adapter changes onto what it should; without the bias, whose rounding is another.

    B is scaled to an early update, and the bias of the base becomes 0.
    """
    base: Any = layer.get_base_layer()
    if base.bias is not None:
        base.bias.zero_()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    b *= UPDATE * float(base(x).norm() / _update(x, a, b, layer.scaling["default"]).norm())
    exact = _update(x, a, b, layer.scaling["default"])
    changed = layer(x).double() - base(x).double()
    return float((changed * exact).sum() / exact.square().sum())


def _update(x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    return functional.linear(functional.linear(x.double(), a.double()), b.double()) * scaling
