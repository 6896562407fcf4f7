"""What is minimised: the negative log likelihood of the target tokens.

Sums here, never means: the loop divides by the targets of the whole optimizer step, over all micro batches and
ranks. A mean per micro batch would weigh a token by how many others happen to share its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .collate import Batch


def nll(forward: nn.Module, batch: Batch) -> Tensor:
    """Sum of -log p(target | what precedes it) over the targets of `batch`, in nats; scalar, at least fp32.

    Logits are made for the positions that predict a target and for no others: with a long prompt and a large
    vocabulary they are most of the memory of a step. (A boolean mask is one of the forms that transformers'
    `logits_to_keep` takes; the logits come flattened to [targets, vocabulary] then.)
    """
    logits: Tensor = forward(input_ids=batch.inputs, logits_to_keep=batch.predicts, use_cache=False).logits
    assert logits.shape[:-1] == batch.labels.shape, f"the model gave logits of shape {tuple(logits.shape)}"
    precise = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits.to(precise), batch.labels, reduction="sum")
