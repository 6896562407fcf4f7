"""The tokenised dataset: flat arrays of tokens and targets, divided into sequences by offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_data import RowProblem

Tokens = NDArray[np.int32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class TokenizedDataset:
    """A tokenised dataset. The same file, tokenizer and length always give the same arrays.

    Sequence i is tokens[offsets[i]:offsets[i + 1]]. It comes from line lines[i] of the file; a row becomes
    several sequences only if the chat template rewrites earlier turns.
    """

    tokens: Tokens
    """int32 [all tokens]."""
    targets: Flags
    """bool [all tokens]. True where the token is a label, to be predicted from the tokens before it. Never True
    at the first token of a sequence."""
    offsets: NDArray[np.int64]
    """int64 [sequences + 1], from 0 to the number of tokens."""
    lines: NDArray[np.int32]
    """int32 [sequences]."""
    rows: int
    """Rows of the file. rows = used + refused."""
    used: int
    """Rows with at least one sequence here."""
    refused: int
    """Rows skipped as bad, while reading the file or while tokenising it."""
    truncated: int
    """Sequences truncated to the sequence length."""
    problems: tuple[RowProblem, ...]
    """The first skipped rows, each with its reason."""
    stop_ids: tuple[int, ...]
    """The tokens that end the trained turns: the finetuned model stops at them."""
    notes: tuple[str, ...]
    """Warnings, one sentence each."""

    def __len__(self) -> int:
        """Sequences."""
        return len(self.lines)

    def sequence(self, i: int) -> tuple[Tokens, Flags]:
        """Tokens and targets of sequence `i`, both of its length. Views, not copies."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.tokens[part], self.targets[part]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, int64 [sequences]."""
        return np.diff(self.offsets)

    @property
    def token_count(self) -> int:
        return len(self.tokens)

    @property
    def target_tokens(self) -> int:
        return int(self.targets.sum())


def concatenate(
    sequences: Sequence[tuple[int, Tokens, Flags]],
) -> tuple[Tokens, Flags, NDArray[np.int64], NDArray[np.int32]]:
    """tokens, targets, offsets and lines of sequences of (line, tokens, targets)."""
    lengths = [len(tokens) for _, tokens, _ in sequences]
    return (
        np.concatenate([np.empty(0, np.int32), *(tokens for _, tokens, _ in sequences)]),
        np.concatenate([np.empty(0, np.bool_), *(targets for _, _, targets in sequences)]),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([line for line, _, _ in sequences], dtype=np.int32),
    )
