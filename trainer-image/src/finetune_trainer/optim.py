"""The optimizers of engines, by the name that the configuration has; and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from finetune_api.runtime.choices import OptimizerName
from finetune_api.runtime.run_config import Optimizer

from . import adamw_8bit
from .adamw import AdamW
from .adamw_8bit import AdamW8bit
from .token_rows import TokenRows

_TINY = 1e-6
"""Avoids a division by zero; the same value as in torch's own clipping."""


class LocalOptimizer(Protocol):
    """Updates this rank's part of the trained weights."""

    def step(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
        divisor: Tensor,
        skip: Tensor,
    ) -> None:
        """Update `weights` (fp32, all or some) in place with `gradients` / `divisor`.

        `divisor` and `skip` are fp32 scalars. Where `skip` is 1, nothing changes. Does not wait for the device.
        """
        ...

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Its state by kind and name of the weight, as many rows as the weight. Loading into it in place, then
        `resumed`, restores it."""
        ...

    def resumed(self, steps: int) -> None:
        """The state is that after `steps` updates."""
        ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name. Tied parameters appear once, under their first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def in_eight_bits(model: nn.Module, settings: Optimizer) -> frozenset[str]:
    """Trained weights whose moments are in eight bits: large matrices, but no embeddings, as in transformers.

    A rare token shares blocks with frequent ones, whose scale its moments would be lost beside.
    """
    if settings.name is not OptimizerName.ADAMW_8BIT:
        return frozenset()
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding | TokenRows)]
    embeddings = {parameter for module in modules for parameter in module.parameters(recurse=False)}
    return frozenset(name for name, p in trained(model).items() if p not in embeddings and adamw_8bit.suits(p))


def build(weights: Mapping[str, Tensor], model: nn.Module, settings: Optimizer) -> LocalOptimizer:
    """The optimizer that the configuration names, of this rank's part of the trained weights of `model`."""
    if settings.name is OptimizerName.ADAMW_8BIT:
        return AdamW8bit(weights, in_eight_bits(model, settings), settings)
    return AdamW(weights, settings)


def moment_bytes(model: nn.Module, settings: Optimizer) -> int:
    """Of the moments of all trained weights, on all ranks that share them."""
    quantised = in_eight_bits(model, settings)
    return sum(
        adamw_8bit.moment_bytes(p.numel()) if name in quantised else 2 * 4 * p.numel()
        for name, p in trained(model).items()
    )


def step_bytes(settings: Optimizer) -> int:
    """Most that a step of the optimizer takes on a GPU for the time that it lasts."""
    return adamw_8bit.STEP_BYTES if settings.name is OptimizerName.ADAMW_8BIT else 0


def clipping_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of global L2 norm `norm` are divided by, so that it is at most `max_norm` (0: no clipping)."""
    return ((norm + _TINY) / max_norm).clamp(min=1.0) if max_norm else torch.ones_like(norm)
