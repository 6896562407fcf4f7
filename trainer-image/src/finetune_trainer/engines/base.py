"""The protocol of an engine, and the common base class: AdamW over the parameters of a module."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import Optimizer

from .. import loss, optim
from ..collate import TokenBatch


class TrainingEngine(Protocol):
    """What the training loop calls. Every method is collective: all ranks call it, in the same order."""

    model: nn.Module
    """The module with the names of the checkpoint; its parameters may be sharded."""

    def accumulate(self, batch: TokenBatch, scale: float, *, last: bool) -> Tensor:
        """Forward and backward of one micro batch; add the gradient of `scale` times the summed NLL.

        `scale` is 1 / (targets of the whole step, over all ranks): afterwards, with `last` for the last micro
        batch of the step, the gradients are those of the mean over all targets. Returns this rank's summed NLL.
        """
        ...

    def evaluate(self, batch: TokenBatch) -> Tensor:
        """The summed NLL of this rank's batch, without gradients and without dropout."""
        ...

    def clip(self, max_norm: float) -> float:
        """Clip the gradients to the global norm `max_norm` (0: no clipping); return the norm before."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the weights and clear the gradients."""
        ...

    def state(self) -> dict[str, Any]:
        """Trained parameters and their moments: tensors by kind and parameter name.

        These are the tensors of the engine itself: loading into them in place restores its state.
        """
        ...

    def resumed(self, steps: int) -> None:
        """Called after the state of `steps` optimizer steps has been loaded."""
        ...


class AdamwEngine:
    """An engine whose optimizer is torch's AdamW. Subclasses define the gradient synchronisation."""

    def __init__(self, model: nn.Module, forward: nn.Module, settings: Optimizer, compute: ComputeSettings) -> None:
        """`forward` is called in training: `model` itself, or a wrapper around it."""
        self.model = model
        self._forward = forward
        self._compute = compute
        self._parameters = optim.trained(model)
        self._optimizer = optim.build(self._parameters.values(), settings)

    def accumulate(self, batch: TokenBatch, scale: float, *, last: bool) -> Tensor:
        with self._gradient_sync(last):
            with self._compute.precision():
                total = loss.nll(self._forward, batch.to(self._compute.device))
            torch.autograd.backward(total * (scale * self._compute.averaged_over))
        return total.detach()

    def evaluate(self, batch: TokenBatch) -> Tensor:
        self.model.eval()
        with torch.no_grad(), self._compute.precision():
            total = loss.nll(self.model, batch.to(self._compute.device))
        self.model.train()
        return total

    def clip(self, max_norm: float) -> float:
        return optim.clip([_gradient(name, p) for name, p in self._parameters.items()], max_norm)

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

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Context of one micro batch; gradients are synchronised over the ranks in the last one of a step."""
        raise NotImplementedError


class ComputeSettings:
    """Device and compute dtype of an engine."""

    def __init__(self, device: torch.device, autocast: Precision, averaged_over: int) -> None:
        self.device = device
        self.averaged_over = averaged_over
        """Ranks over which the engine averages gradients; the loss is scaled up by it, since the sum is needed."""
        self._autocast = autocast

    def precision(self) -> AbstractContextManager[Any]:
        enabled = self._autocast is Precision.BF16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _gradient(name: str, parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, f"{name} has no gradient: the model does not use it in its forward pass"
    return parameter.grad
