"""Which rows are in which micro batch: pure index arithmetic with the same result on every rank.

An optimizer step takes consecutive rows of its epoch's order, independent of the number of ranks. Within the
step, micro batch m of rank r holds positions (m * data_parallel + r) * per_device + i. So one process with
eight micro batches and eight processes with one micro batch each train on the same rows in the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """The rows of every optimizer step. Steps count from 0 over the whole run."""

    rows: int
    rows_per_step: int
    epochs: int
    max_steps: int | None
    shuffle: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch takes the remaining rows."""
        return -(-self.rows // self.rows_per_step)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.epochs
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def step_rows(self, step: int) -> Indices:
        """Indices of the rows of `step`, int64 [rows_per_step or fewer]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.rows_per_step
        return self.epoch_rows(epoch)[start : start + self.rows_per_step]

    def epoch_rows(self, epoch: int) -> Indices:
        """Indices of all rows in the order of `epoch`, int64 [rows]."""
        return _permutation(self.rows, self.seed, epoch) if self.shuffle else np.arange(self.rows)

    def ends_epoch(self, steps_done: int) -> bool:
        """Whether an epoch is complete after `steps_done` steps."""
        return steps_done % self.steps_per_epoch == 0


@lru_cache(maxsize=2)  # called at every step of the epoch, and of the next one by what is collated ahead
def _permutation(rows: int, seed: int, epoch: int) -> Indices:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


@dataclass(frozen=True)
class BatchSharding:
    """How the rows of a step are divided into micro batches over ranks."""

    per_device: int
    data_parallel: int

    def micro_batches(self, rows: Indices, rank: int) -> list[Indices]:
        """The micro batches of `rank`. Every rank has the same number, since each one takes part in collectives.

        The last micro batches of a short step may have fewer rows, or none.
        """
        width = self.per_device * self.data_parallel
        starts = range(rank * self.per_device, max(len(rows), 1) + rank * self.per_device, width)
        return [rows[start : start + self.per_device] for start in starts]
