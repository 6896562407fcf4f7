"""AdamW on the local weights of a rank, with moments in fp32, by torch's fused kernel.

Clipping and skipping happen inside the kernel, so that no step waits for the device to know its norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from finetune_api.runtime.run_config import Optimizer


@dataclass(frozen=True)
class Numbers:
    """What a step takes besides weights and gradients."""

    settings: Optimizer
    learning_rate: float
    divisor: Tensor
    """Of the gradients; fp32 scalar."""
    skip: Tensor
    """fp32 scalar; where it is 1, nothing changes."""


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
        numbers = Numbers(self._settings, learning_rate, divisor, skip)
        for matrices in (True, False):
            names = [name for name, weight in weights.items() if decays(weight) == matrices]
            if names:
                own, grads, exp_avg, exp_avg_sq, steps = (
                    [kind[name] for name in names]
                    for kind in (weights, gradients, self.exp_avg, self.exp_avg_sq, self._steps)
                )
                update(own, grads, (exp_avg, exp_avg_sq), steps, numbers, decay=matrices)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The moments by kind and name: the tensors of the optimizer itself, each in the shape of its weight."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def resumed(self, steps: int) -> None:
        """The moments are those after `steps` updates."""
        for done in self._steps.values():
            done.fill_(steps)


def decays(weight: Tensor) -> bool:
    return weight.ndim >= 2


def update(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: tuple[Sequence[Tensor], Sequence[Tensor]],
    steps: Sequence[Tensor],
    numbers: Numbers,
    *,
    decay: bool,
) -> None:
    """One call of the fused kernel, which updates all but `gradients` in place."""
    settings = numbers.settings
    adamw(
        list(weights), list(gradients), list(moments[0]), list(moments[1]), [], list(steps),
        fused=True, grad_scale=numbers.divisor, found_inf=numbers.skip, amsgrad=False, maximize=False,
        beta1=settings.beta1, beta2=settings.beta2, eps=settings.epsilon,
        lr=numbers.learning_rate, weight_decay=settings.weight_decay if decay else 0.0,
    )  # fmt: skip


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
