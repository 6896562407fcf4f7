"""Collate rows into tensors. Called by batches.py, on its worker thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
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
    targets: Tensor
    """int64 [targets]: indices into the flattened `inputs` of the tokens whose next token is a target. Indices, not
    a mask: on a GPU, indexing by a mask makes the CPU wait until the number of its elements is known."""
    labels: Tensor
    """int64 [targets]: the targets, in the order of `targets`."""
    weights: Tensor | None
    """fp32 [targets]: what the NLL of each target is multiplied by. None: by 1."""
    positions: Tensor
    """int64 [rows, length]: of each token in its sequence."""
    starts: Tensor
    """int32 [sequences + 1]: where each sequence begins in the flattened `inputs`, and where the last one ends
    (cu_seqlens). Padding belongs to the sequence before it."""
    longest: int
    """Length of the longest sequence."""

    def to(self, device: torch.device) -> TokenBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> TokenBatch:
        """In page-locked memory, from which copies to a GPU do not make the CPU wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(part) for name, part in parts.items() if isinstance(part, Tensor)}
        return replace(self, **changed)


def collate(rows: Rows, indices: Iterable[int]) -> TokenBatch:
    """The batch of these rows; without rows, one token and no targets, so that the rank joins the collectives.

    In numpy: torch's operators would start threads of their own on the worker thread.
    """
    sequences = [rows.row(int(i)) for i in indices]
    length = max((len(tokens) - 1 for tokens, _ in sequences), default=1)
    inputs = np.zeros((max(len(sequences), 1), length), np.int64)
    labels, predicts = np.zeros_like(inputs), np.zeros(inputs.shape, np.bool_)
    for i, (tokens, targets) in enumerate(sequences):
        inputs[i, : len(tokens) - 1] = tokens[:-1]
        labels[i, : len(tokens) - 1] = tokens[1:]
        predicts[i, : len(tokens) - 1] = targets[1:]
    return TokenBatch(
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(np.flatnonzero(predicts)),
        labels=torch.from_numpy(labels[predicts]),
        weights=None,
        positions=torch.from_numpy(np.tile(np.arange(length), (len(inputs), 1))),
        starts=torch.from_numpy(np.arange(len(inputs) + 1, dtype=np.int32) * np.int32(length)),
        longest=length,
    )
