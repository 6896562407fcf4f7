"""The protocol of an engine, and what the engines of this version share: AdamW over the parameters of a module."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import Optimizer

from .. import loss, optim
from ..collate import Batch


class Engine(Protocol):
    """What the loop asks for. Every method is collective: all ranks call it, in the same order."""

    model: nn.Module
    """The module with the names of the checkpoint; its parameters may be sharded."""

    def accumulate(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """Forward and backward of one micro batch; add the gradient of `scale` times the summed NLL.

        `scale` is 1 / (targets of the whole step, over all ranks): afterwards, with `last` for the last micro
        batch of the step, the gradients are those of the mean over all targets. Returns this rank's summed NLL.
        """
        ...

    def evaluate(self, batch: Batch) -> Tensor:
        """The summed NLL of this rank's batch, without gradients and without dropout."""
        ...

    def clip(self, largest: float) -> float:
        """Scale the gradients down to the global norm `largest` (0: leave them); return the norm before."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the weights and forget the gradients."""
        ...

    def state(self) -> dict[str, Any]:
        """What is trained and its moments, in the canonical form: tensors by kind and parameter name.

        They are the engine's own, so that loading into them in place restores it.
        """
        ...

    def resumed(self, steps: int) -> None:
        """The state has been loaded as of `steps` optimizer steps."""
        ...


class AdamwEngine:
    """An engine whose optimizer is torch's AdamW. Subclasses say how gradients meet."""

    def __init__(self, model: nn.Module, forward: nn.Module, settings: Optimizer, compute: Compute) -> None:
        """`forward` is called in place of `model` in training: itself, or a wrapper around it."""
        self.model = model
        self._forward = forward
        self._compute = compute
        self._parameters = optim.trained(model)
        self._optimizer = optim.adamw(self._parameters.values(), settings)

    def accumulate(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        with self._exchange(last):
            with self._compute.precision():
                total = loss.nll(self._forward, batch.to(self._compute.device))
            torch.autograd.backward(total * (scale * self._compute.averaged_over))
        return total.detach()

    def evaluate(self, batch: Batch) -> Tensor:
        self.model.eval()
        with torch.no_grad(), self._compute.precision():
            total = loss.nll(self.model, batch.to(self._compute.device))
        self.model.train()
        return total

    def clip(self, largest: float) -> float:
        return optim.clip([_gradient(name, p) for name, p in self._parameters.items()], largest)

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        moments = self._optimizer.state
        return {
            "parameters": {name: p.detach() for name, p in self._parameters.items()},
            "exp_avg": {name: moments[p]["exp_avg"] for name, p in self._parameters.items()},
            "exp_avg_sq": {name: moments[p]["exp_avg_sq"] for name, p in self._parameters.items()},
        }

    def resumed(self, steps: int) -> None:
        for parameter in self._parameters.values():
            self._optimizer.state[parameter]["step"].fill_(steps)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        """Around one micro batch; gradients meet those of the other ranks in the last one of a step."""
        raise NotImplementedError


class Compute:
    """Where and in which number format an engine computes."""

    def __init__(self, device: torch.device, autocast: Precision, averaged_over: int) -> None:
        self.device = device
        self.averaged_over = averaged_over
        """Ranks over which gradients are averaged, where a sum is meant."""
        self._autocast = autocast

    def precision(self) -> AbstractContextManager[Any]:
        enabled = self._autocast is Precision.BF16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, f"{name} has no gradient: the model does not use it in its forward pass"
    return parameter.grad
