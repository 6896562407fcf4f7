"""One optimizer step over the same eight rows, cut into micro batches in different ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune_trainer import loop, mesh
from finetune_trainer.collate import TokenBatch
from finetune_trainer.engines import StepOutcome, TrainingEngine, build
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models
from trainer.parity_cases import Recording, group

Result = tuple[float, dict[str, Tensor]]
"""The loss of the step, and the full gradient of every parameter."""


def rows() -> Rows:
    """Eight rows of 5 to 20 tokens with 1 to 15 targets, and none in the sixth."""
    random = np.random.default_rng(3)
    lengths = np.array([5, 20, 12, 16, 7, 10, 8, 14])
    counts = np.array([1, 15, 4, 12, 6, 0, 2, 3])
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    targets = np.zeros(offsets[-1], np.bool_)
    for start, length, count in zip(offsets[:-1], lengths, counts, strict=True):
        targets[start + 1 + random.permutation(length - 1)[:count]] = True
    tokens = random.integers(0, 1024, offsets[-1], dtype=np.int32)
    return Rows(tokens, targets, offsets, np.arange(1, 9, dtype=np.int32))


class MeanOfMeans(Recording):
    """The wrong way: each micro batch is averaged over its own targets, and the averages are averaged."""

    def __init__(self, engine: TrainingEngine, micro_batches: int) -> None:
        super().__init__(engine)
        self._micro_batches = micro_batches

    def train(self, micro_batches: Iterable[TokenBatch], **settings: Any) -> StepOutcome:
        def weighted(batch: TokenBatch) -> TokenBatch:
            share = settings["targets"] / (max(len(batch.labels), 1) * self._micro_batches)
            return replace(batch, weights=torch.full(batch.labels.shape, share))

        return super().train(map(weighted, micro_batches), **settings)


def steps(*cuts: int) -> dict[torch.dtype, dict[int, Result]]:
    """The step by number format and by rows of a micro batch; negative: with a mean per micro batch."""
    torch.set_num_threads(1)
    with group():
        return {
            dtype: {cut: _step(abs(cut), dtype, MeanOfMeans if cut < 0 else None) for cut in cuts}
            for dtype in (torch.float32, torch.float64)
        }


def _in(dtype: torch.dtype) -> nn.Module:
    model: nn.Module = models.llama()
    return model.to(dtype)


def _step(per_device: int, dtype: torch.dtype, wrong: Callable[[TrainingEngine, int], Recording] | None) -> Result:
    accumulation = 8 // per_device
    config = models.run_config(
        Path("model"), Path("data"), Path("output"), data__shuffle=False,
        batch={"per_device": per_device, "accumulation": accumulation},
    )  # fmt: skip
    alone = mesh.build(config, RankInfo(0, 1, 0, torch.device("cpu")))
    engine = build(_in(dtype), config, alone)
    recording = wrong(engine, accumulation) if wrong else Recording(engine)
    data = rows()
    train_state = TrainState(config, alone, recording, data, sampler(config, len(data)), BatchSharding(per_device, 1))
    with closing(loop.micro_batches(train_state, [0])) as coming:
        return loop.train_step(train_state, 0, coming).loss, recording.first
