"""What ranks set up before they train: the kernels of torch, and their random numbers."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import preparation, worker
from finetune_trainer.handoff import Handoff
from finetune_trainer.heartbeat import Heartbeats
from finetune_trainer.stop import Stop
from trainer.trainer_work import ALONE, trainer


def kernels(config: RunConfig, folder: Path) -> tuple[str, bool, str | None]:
    """The precision of fp32 products, whether kernels are deterministic, and cuBLAS's variable, after a run."""
    torch.set_num_threads(1)
    preparation.prepare(config, 0, folder, lambda _: None)
    Heartbeats(folder, 1)
    with Stop() as stop:
        assert worker.run(Handoff.read(folder), ALONE, folder, stop) == 0
    found = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    return *found, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


class Drawing(Stop):
    """Notes in every step which number this rank would draw next; requests a stop in step `last`."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last
        self.drawn: list[float] = []

    def requested(self) -> bool:
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        self.drawn.append(float(torch.rand((), generator=generator)))
        return len(self.drawn) == self._last


def draws(config: RunConfig, last: int) -> list[float]:
    """Run on this rank until step `last` or the end; returns the next random number of each step."""
    drawing = Drawing(last)
    trainer(config, drawing).run()
    return drawing.drawn


def first_draw(config: RunConfig) -> float:
    """The first random number after the model was loaded."""
    trainer(config, Stop())._load()
    return float(torch.rand(()))
