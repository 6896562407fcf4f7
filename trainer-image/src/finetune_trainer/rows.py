"""Tokenised rows: flat arrays on the disk of the node, memory-mapped by the ranks.

The launcher writes them once per node (preparation.py); every rank of the node maps the same pages.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import StorageFailed

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Row i is tokens[offsets[i]:offsets[i + 1]]; its first token is never a target."""

    tokens: NDArray[np.int32]
    """int32 [all tokens]."""
    targets: NDArray[np.bool_]
    """bool [all tokens]. True where the token is to be predicted from the tokens before it."""
    offsets: Int64
    """int64 [rows + 1]."""
    lines: NDArray[np.int32]
    """int32 [rows]. Line of the dataset that the row comes from."""

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def lengths(self) -> Int64:
        """Tokens of each row, int64 [rows]."""
        return np.diff(self.offsets)

    @cached_property
    def target_counts(self) -> Int64:
        """Targets of each row, int64 [rows]."""
        return np.add.reduceat(self.targets, self.offsets[:-1], dtype=np.int64)

    def row(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens and targets of row `i`."""
        part = slice(self.offsets[i], self.offsets[i + 1])
        return self.tokens[part], self.targets[part]

    @property
    def digest(self) -> str:
        """Of what is computed from: the lines are in messages only."""
        parts = (self.tokens, self.targets, self.offsets)
        return hashlib.sha256("".join(hashlib.sha256(part.data).hexdigest() for part in parts).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Raises StorageFailed: numpy says neither which volume is full nor that it is."""
        try:
            folder.mkdir()
            for field in fields(self):
                np.save(folder / f"{field.name}.npy", getattr(self, field.name), allow_pickle=False)
        except OSError as error:
            raise StorageFailed(
                f"prepared rows cannot be written to {folder} ({error}); free space in the folder for temporary "
                "files (TMPDIR)"
            ) from error

    @classmethod
    def load(cls, folder: Path) -> Rows:
        arrays = {
            field.name: np.load(folder / f"{field.name}.npy", mmap_mode="r", allow_pickle=False)
            for field in fields(cls)
        }
        return cls(**arrays)
