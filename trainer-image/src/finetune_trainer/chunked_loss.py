"""The loss of loss.py, with the logits of a chunk of the targets at a time.

Logits are the largest tensors of a step: those of 12,000 targets in a vocabulary of 128,000 are 6 GB in fp32, several
times over. Here the gradients of a chunk are computed in the forward pass, while its logits are there, so no logits
are kept or computed twice. The sums over chunks, of the loss and of the gradients of the output head, are fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from . import loss
from .collate import TokenBatch

_log = logging.getLogger(__name__)

CPU_CHUNK = 2**25
GPU_CHUNK = 2**28
"""Logits held at a time. Every chunk adds to the gradient of the output head, whose traffic costs a GPU more."""
_TRIED = 8
"""Tokens of the forward passes that show whether `Scaling` is what the model does."""


@dataclass(frozen=True)
class Scaling:
    """What architectures do to the numbers of their output head: a factor, a divisor, a cap by tanh."""

    factor: float | None = None
    divisor: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Scaling:
        text = config.get_text_config()
        factor = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None)  # Cohere; Falcon H1
        return cls(factor, getattr(text, "logits_scaling", None), getattr(text, "final_logit_softcapping", None))

    def __call__(self, logits: Tensor) -> Tensor:
        if self.factor is not None:
            logits = logits * self.factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


class ChunkedLoss:
    """The loss of one model. Where the model does something else to its logits, they are held whole."""

    def __init__(self, model: nn.Module, called: nn.Module | None = None) -> None:
        """`called`: a wrapper of `model` that is called in its place."""
        causal = loss.causal(model)
        chunk = GPU_CHUNK if causal.device.type == "cuda" else CPU_CHUNK
        self._model = model
        self._called = called
        self._scaling = Scaling.of(causal.config)
        self._rows = max(chunk // causal.config.get_text_config().vocab_size, 1)
        self._known: bool | None = None

    def backward(self, batch: TokenBatch, divisor: float) -> Tensor:
        """Add the gradients of NLL / `divisor` to those of the model. Returns the NLL, detached."""
        if self._is_known(batch):
            total = self._nll(batch, divisor)
            torch.autograd.backward(total)
        else:
            total = loss.nll(self._model, batch, self._called)
            torch.autograd.backward(total / divisor)
        return total.detach()

    def evaluate(self, batch: TokenBatch) -> Tensor:
        """The NLL, without gradients."""
        with torch.no_grad():
            return self._nll(batch) if self._is_known(batch) else loss.nll(self._model, batch, self._called)

    def _nll(self, batch: TokenBatch, divisor: float = 1.0) -> Tensor:
        """The NLL, whose gradient is that of NLL / `divisor`."""

        def of_states(head: nn.Module, forward: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            def of_part(states: Tensor, part: slice) -> Tensor:
                weights = None if batch.weights is None else batch.weights[part]
                return loss.of_logits(self._scaling(forward(states)), batch.labels[part], weights)

            parts = [slice(at, at + self._rows) for at in range(0, max(len(states), 1), self._rows)]
            if not torch.is_grad_enabled():
                return torch.stack([of_part(states[part], part) for part in parts]).sum()
            trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
            return _WithGradients.apply(of_part, parts, divisor, states, *trained)  # type: ignore[no-any-return]

        return loss.instead_of_logits(self._model, batch, of_states, divisor, self._called)

    def _is_known(self, batch: TokenBatch) -> bool:
        """Whether the chunks of this model give its own loss: tried once, with a few tokens. Collective."""
        if self._known is None:
            training, few = self._model.training, _first(batch, min(_TRIED, self._rows))  # one chunk
            self._model.eval()  # without dropout
            with torch.no_grad():
                ours, own = self._nll(few), loss.nll(self._model, few, self._called)
            self._model.train(training)
            if not own.isfinite():
                return False  # and tried again with the next batch
            self._known = torch.equal(ours, own)
            if not self._known:
                what = type(loss.causal(self._model)).__name__
                _log.warning("%s does something of its own to its logits, so those of all targets are held.", what)
        return self._known


class _WithGradients(torch.autograd.Function):
    """Sum of `of_part` over `parts`; the gradients are those of the sum / `divisor`."""

    @staticmethod
    def forward(
        ctx: Any,
        of_part: Callable[[Tensor, slice], Tensor],
        parts: Sequence[slice],
        divisor: float,
        states: Tensor,
        *trained: Tensor,
    ) -> Tensor:
        totals: list[Tensor] = []
        of_states: list[Tensor] = []
        of_trained: list[Tensor | None] = [None] * len(trained)
        for part in parts:
            with torch.enable_grad():
                own = states[part].detach().requires_grad_()
                nll = of_part(own, part)
                first, *others = torch.autograd.grad(nll / divisor, [own, *trained], allow_unused=True)
            totals.append(nll.detach())
            of_states.append(first)
            of_trained = [_plus(*each) for each in zip(of_trained, others, strict=True)]
        ctx.gradients = torch.cat(of_states), of_trained
        return torch.stack(totals).sum()

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        of_states, of_trained = ctx.gradients
        del ctx.gradients  # autograd takes gradients without another reference, and copies the rest
        return None, None, None, of_states, *of_trained


def _plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    if total.dtype.itemsize < 4:
        total = total.float()
    return total.add_(more)


def _first(batch: TokenBatch, most: int) -> TokenBatch:
    """The first tokens of `batch`, each of them a target."""
    inputs = batch.inputs[:1, :most]
    count = inputs.shape[1]
    return replace(
        batch,
        inputs=inputs,
        targets=torch.arange(count, device=inputs.device),
        labels=inputs[0],
        weights=None,
        positions=batch.positions[:1, :most],
        starts=batch.starts[:1].new_tensor([0, count]),
        longest=count,
    )
