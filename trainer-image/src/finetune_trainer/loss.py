"""The loss: negative log likelihood of the target tokens.

Sums, not means: the loop divides by the number of targets of the whole optimizer step, over all micro batches and
ranks. With a mean per micro batch, the weight of a token would depend on the other tokens in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from . import architecture
from .collate import TokenBatch

OfStates = Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor], Tensor]
"""Of the output head, its forward pass and hidden states [targets, hidden size]."""


def nll(forward: nn.Module, batch: TokenBatch, called: nn.Module | None = None) -> Tensor:
    """Weighted sum of -log p(target | preceding tokens) over the targets of `batch`, in nats; scalar, at least fp32.

    `called`: a wrapper that is called in place of `forward`, whose modules have to be called through it.

    The model numbers the positions itself: `batch.positions` are the same as long as a row is one sequence, some
    architectures take none, and the others would compute their rotary embeddings for every row.
    """
    with _head_sees(batch.targets, forward):
        output: Any = (called or forward)(input_ids=batch.inputs, use_cache=False)
    shape = tuple(output.logits.shape)
    assert shape[:-1] == batch.labels.shape, f"the model gave logits of shape {shape}"
    return _with_router_loss(of_logits(output.logits, batch.labels, batch.weights), output, forward, batch)


def of_logits(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted sum of -log p(label) over `labels` [targets], from `logits` [targets, vocabulary]."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weights is None:
        return functional.cross_entropy(precise, labels, reduction="sum")
    return functional.cross_entropy(precise, labels, reduction="none") @ weights.to(precise.dtype)


def instead_of_logits(
    forward: nn.Module, batch: TokenBatch, compute: OfStates, divisor: float, called: nn.Module | None = None
) -> Tensor:
    """What `compute` gives for the output head and the states that predict a target, in the model's forward pass.

    Its gradient is that of the NLL / `divisor`. `called` as for `nll`.

    The head's weights may be whole only there, and what wraps the model sees the value as the model's result. Hooks
    of the head see it as that of the head: they may have to gather its weights for the backward pass.
    """
    head = _head(forward)
    own, found = head.forward, list[Tensor]()

    def stand_in(hidden: Tensor) -> Tensor:
        return compute(head, own, hidden.flatten(0, 1).index_select(0, batch.targets))

    def taken(_: nn.Module, inputs: tuple[Tensor], value: Tensor) -> Tensor:
        found.append(value)
        return inputs[0].new_zeros(1, 1)

    def instead(_: nn.Module, __: Any, output: Any) -> Tensor:
        return _with_router_loss(found[0], output, forward, batch, divisor)

    handles = forward.register_forward_hook(instead, prepend=True), head.register_forward_hook(taken)
    head.forward = stand_in  # an attribute of the instance, which hides the method
    try:
        result: Tensor = (called or forward)(input_ids=batch.inputs, use_cache=False)
        return result
    finally:
        del head.forward
        for handle in handles:
            handle.remove()


def _with_router_loss(
    nll: Tensor, output: Any, forward: nn.Module, batch: TokenBatch, divisor: float = 1.0
) -> Tensor:
    """The NLL, with the gradients of the loss that keeps the experts of a mixture evenly used, if the model has one.

    That loss is a mean over the tokens of a micro batch. Its weight is the number of targets: over the micro batches
    and ranks of a step, what is minimised is the mean NLL + router_aux_loss_coef x the mean of it.
    """
    balance = getattr(output, "aux_loss", None)
    if not isinstance(balance, Tensor) or not balance.requires_grad:
        return nll
    factor = architecture.router_loss(causal(forward)) or 0.0
    term = balance.to(nll.dtype) * (factor * len(batch.labels) / divisor)
    return nll + (term - term.detach())


@contextmanager
def _head_sees(targets: Tensor, forward: nn.Module) -> Iterator[None]:
    """While the context lasts, the model's output head gets only the hidden states that predict a target.

    With a long prompt and a large vocabulary the logits are most of the memory of a step. transformers'
    `logits_to_keep` takes indices only where all rows have the same, and otherwise a mask, which makes the CPU wait
    for the GPU. A hook on the head leaves to the model what it does with its logits, such as scaling or capping.
    """

    def gather(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden.flatten(0, 1).index_select(0, targets), *rest

    handle = _head(forward).register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _head(forward: nn.Module) -> nn.Module:
    """The output head of the causal language model, inside whatever wraps it."""
    model = causal(forward)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert isinstance(head, nn.Module), f"{type(model).__name__} has no output head"
    return head


def causal(forward: nn.Module) -> PreTrainedModel:
    """The causal language model, inside whatever wraps it."""
    return next(module for module in forward.modules() if isinstance(module, PreTrainedModel))
