"""AdamW on the local weights of a rank, in fp32, by torch's fused kernel. Used by the engines.

Clipping and skipping happen inside the kernel, so that no step waits for the device to know its norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from finetune_api.runtime.run_config import Optimizer

_TINY = 1e-6
"""Avoids a division by zero; the same value as in torch's own clipping."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters by name. Tied parameters appear once, under their first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class AdamW:
    """AdamW (Loshchilov and Hutter 2019). Weight decay applies to matrices, not to norms and biases."""

    def __init__(self, weights: Mapping[str, Tensor], settings: Optimizer) -> None:
        """Moments are at least fp32 and allocated now, for a checkpoint to be loaded into them."""
        self.exp_avg, self.exp_avg_sq = ({name: _zeros(weight) for name, weight in weights.items()} for _ in range(2))
        self._steps = {name: torch.zeros((), device=weight.device) for name, weight in weights.items()}
        self._settings = settings

    @torch.no_grad()
    def step(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        learning_rate: float,
        divisor: Tensor,
        skip: Tensor,
    ) -> None:
        """Update `weights` (fp32, all or some) in place with `gradients` / `divisor`.

        `divisor` and `skip` are fp32 scalars. Where `skip` is 1, nothing changes.
        """
        for matrices, decay in ((True, self._settings.weight_decay), (False, 0.0)):
            names = [name for name, weight in weights.items() if (weight.ndim >= 2) == matrices]
            if names:
                own, grads, exp_avg, exp_avg_sq, steps = (
                    [kind[name] for name in names]
                    for kind in (weights, gradients, self.exp_avg, self.exp_avg_sq, self._steps)
                )
                adamw(
                    own, grads, exp_avg, exp_avg_sq, [], steps,
                    fused=True, grad_scale=divisor, found_inf=skip, amsgrad=False, maximize=False,
                    beta1=self._settings.beta1, beta2=self._settings.beta2, eps=self._settings.epsilon,
                    lr=learning_rate, weight_decay=decay,
                )  # fmt: skip

    def resumed(self, steps: int) -> None:
        """The moments are those after `steps` updates."""
        for done in self._steps.values():
            done.fill_(steps)


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def build(weights: Mapping[str, Tensor], settings: Optimizer) -> AdamW:
    """The optimizer that the configuration names."""
    return _OPTIMIZERS[settings.name](weights, settings)


_OPTIMIZERS: dict[str, Callable[[Mapping[str, Tensor], Optimizer], AdamW]] = {"adamw": AdamW}


def clipping_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of global L2 norm `norm` are divided by, so that it is at most `max_norm` (0: no clipping)."""
    return ((norm + _TINY) / max_norm).clamp(min=1.0) if max_norm else torch.ones_like(norm)
