"""A model some parts of which no row uses, or only rows of some lengths, trained by any engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune_trainer import engines, loop, mesh
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models
from trainer.parity_cases import group, rows

LAYERS = (1, 2)


def train(changes: Mapping[str, Any], steps: int) -> tuple[list[StepResult], list[str]]:
    """What every step has come to, and what this rank logs of parameters."""
    torch.set_num_threads(1)
    with group():
        rank, world = dist.get_rank(), dist.get_world_size()
        config = models.run_config(
            Path("model"), Path("data"), Path("output"),
            **{
                "mesh__processes_per_node": world, "mesh__data_parallel": world, "schedule__max_steps": steps,
                "batch": {"per_device": 1, "accumulation": 4 // world}, **changes,
            },
        )  # fmt: skip
        layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
        data = rows(29)
        state = TrainState(
            config, layout, engines.build(partly_used(), config, layout), data, sampler(config, len(data)),
            BatchSharding(1, world),
        )  # fmt: skip
        found: list[StepResult] = []
        log = Log()
        logging.getLogger("finetune_trainer.unreached").addHandler(log)
        loop.fit(state, 0, [found.append])
    return found, log.messages


def partly_used() -> nn.Module:
    """In some layers, `rare` is used by rows whose length is a multiple of 4, and `never` by none."""
    model = models.llama()
    for layer in (model.model.layers[i] for i in LAYERS):
        layer.rare, layer.never = nn.Linear(128, 128), nn.Linear(128, 128)

        def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor, rare: nn.Module = layer.rare) -> Tensor:
            return output + rare(inputs[0]) if inputs[0].shape[1] % 4 == 0 else output

        layer.mlp.register_forward_hook(add)
    return model


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
