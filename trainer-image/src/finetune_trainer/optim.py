"""AdamW on the local fp32 weights of a rank, by torch's fused kernel. Used by the engines.

Clipping and skipping happen inside the kernel, so that no step waits for the device to know its norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from finetune_api.runtime.run_config import Optimizer

_TINY = 1e-6
"""Avoids a division by zero; the same value as in torch's own clipping."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name. Tied parameters appear once, under their first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class _Group:
    """Weights with the same decay."""

    weight_decay: float
    names: tuple[str, ...]


class AdamW:
    """AdamW (Loshchilov and Hutter 2019). Weight decay applies to matrices, not to norms and biases."""

    def __init__(self, weights: Mapping[str, Tensor], settings: Optimizer) -> None:
        """`weights`: fp32, updated in place. Moments are allocated now, for a checkpoint to be loaded into them."""
        self.exp_avg = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self.exp_avg_sq = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._steps = {name: torch.zeros((), device=weight.device) for name, weight in weights.items()}
        self._weights = weights
        self._settings = settings
        matrices = {name: weight.ndim >= 2 for name, weight in weights.items()}
        self._groups = [
            _Group(decay, tuple(name for name, matrix in matrices.items() if matrix == wanted))
            for wanted, decay in ((True, settings.weight_decay), (False, 0.0))
        ]

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], learning_rate: float, divisor: Tensor, skip: Tensor) -> None:
        """Update the weights with `gradients` / `divisor`, or not at all where `skip` is 1. Both are fp32 scalars."""
        for group in self._groups:
            if group.names:
                weights, own, exp_avg, exp_avg_sq, steps = (
                    [kind[name] for name in group.names]
                    for kind in (self._weights, gradients, self.exp_avg, self.exp_avg_sq, self._steps)
                )
                adamw(
                    weights, own, exp_avg, exp_avg_sq, [], steps,
                    fused=True, grad_scale=divisor, found_inf=skip, amsgrad=False, maximize=False,
                    beta1=self._settings.beta1, beta2=self._settings.beta2, eps=self._settings.epsilon,
                    lr=learning_rate, weight_decay=group.weight_decay,
                )  # fmt: skip

    def resumed(self, steps: int) -> None:
        """The moments are those after `steps` updates."""
        for done in self._steps.values():
            done.fill_(steps)


def build(weights: Mapping[str, Tensor], settings: Optimizer) -> AdamW:
    """The optimizer that the configuration names."""
    return _OPTIMIZERS[settings.name](weights, settings)


_OPTIMIZERS: dict[str, Callable[[Mapping[str, Tensor], Optimizer], AdamW]] = {"adamw": AdamW}


def clipping_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of global L2 norm `norm` are divided by, so that it is at most `max_norm` (0: no clipping)."""
    return ((norm + _TINY) / max_norm).clamp(min=1.0) if max_norm else torch.ones_like(norm)
