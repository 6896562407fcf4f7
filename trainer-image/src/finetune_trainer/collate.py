"""Collate rows into tensors. Called by the training loop and by evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows


@dataclass(frozen=True)
class TokenBatch:
    """Input of one forward pass. Rows are padded on the right.

    There is no attention mask: with causal attention no token attends to the padding after it, and padding is
    never a target. Without a mask the fused kernels run, and the padded length does not change a row's numbers.
    """

    inputs: Tensor
    """int64 [rows, length]: every token of a row except the last, which predicts nothing."""
    predicts: Tensor
    """bool [rows, length]: True where the next token is a target."""
    labels: Tensor
    """int64 [targets]: the targets, in the order of `predicts`."""

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(*(part.to(device, non_blocking=True) for part in (self.inputs, self.predicts, self.labels)))


def collate(rows: Rows, indices: Iterable[int]) -> TokenBatch:
    """The batch of these rows; without rows, one token and no targets, so that the rank joins the collectives."""
    sequences = [rows.row(int(i)) for i in indices]
    length = max((len(tokens) - 1 for tokens, _ in sequences), default=1)
    inputs = torch.zeros(max(len(sequences), 1), length, dtype=torch.int64)
    predicts = torch.zeros(inputs.shape, dtype=torch.bool)
    labels = [torch.zeros(0, dtype=torch.int64)]
    for i, (tokens, targets) in enumerate(sequences):
        numbers = torch.from_numpy(tokens.astype("int64"))
        flags = torch.from_numpy(targets[1:].copy())
        inputs[i, : len(numbers) - 1] = numbers[:-1]
        predicts[i, : len(flags)] = flags
        labels.append(numbers[1:][flags])
    return TokenBatch(inputs, predicts, torch.cat(labels))
