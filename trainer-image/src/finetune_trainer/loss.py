"""The loss: negative log likelihood of the target tokens.

Sums, not means: the loop divides by the number of targets of the whole optimizer step, over all micro batches and
ranks. With a mean per micro batch, the weight of a token would depend on the other tokens in its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .collate import TokenBatch


def nll(forward: nn.Module, batch: TokenBatch) -> Tensor:
    """Sum of -log p(target | preceding tokens) over the targets of `batch`, in nats; scalar, at least fp32.

    Logits are computed only for positions that predict a target: with a long prompt and a large vocabulary they
    are most of the memory of a step. (transformers' `logits_to_keep` accepts a boolean mask; the logits are then
    flattened to [targets, vocabulary].)
    """
    logits: Tensor = forward(input_ids=batch.inputs, logits_to_keep=batch.predicts, use_cache=False).logits
    assert logits.shape[:-1] == batch.labels.shape, f"the model gave logits of shape {tuple(logits.shape)}"
    precise = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(precise), batch.labels, reduction="sum")
