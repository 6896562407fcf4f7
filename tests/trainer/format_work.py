"""Short runs in any number format, interrupted or not, on one rank or many."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune_trainer import checkpoint, engines, environment, loop, mesh, snapshot
from finetune_trainer.engines import StepOutcome
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import NonFinite
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.model_export import gathered
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models
from trainer.parity_cases import group, rows, with_random_b

STEPS = 6
FFT: dict[str, Any] = {}
LORA: dict[str, Any] = {"method": "lora", "lora": models.lora()}


@dataclass
class FormatRun:
    results: list[StepResult] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """After each step, as the optimizer keeps them."""
    state: dict[str, Any] = field(default_factory=dict)
    """At the end: that of the engine, and under `computing` the weights that the model computes with."""

    @property
    def losses(self) -> list[float]:
        return [result.loss for result in self.results]


def train(changes: Mapping[str, Any], scale: float | None = None, stop_after: int | None = None) -> FormatRun:
    """One run; with `stop_after`, two, of which the second continues from the checkpoint of the first.

    `scale`: of the first step.
    """
    torch.set_num_threads(1)
    found = FormatRun()
    with group(), tempfile.TemporaryDirectory() as name:
        folder = [name]
        dist.broadcast_object_list(folder, src=0)
        output = Path(folder[0])
        for begin, end in ((0, stop_after), (stop_after, STEPS)) if stop_after else ((0, STEPS),):
            state = _train_state(changes, end or STEPS)
            if begin:
                tensors = state.engine.state()
                checkpoint.load(output, begin, tensors)
                state.engine.resumed(tensors, begin)
            elif scale:
                state.engine.state()["loss_scale"]["scale"].fill_(scale)
            loop.fit(state, begin or 0, [found.results.append, partial(_note, found, state)])
            checkpoint.save(output, end or STEPS, snapshot.take(state.engine.state(), {}), keep=9, protect=set())
        whole = {**state.engine.state(), "computing": dict(state.engine.model.named_parameters())}
        found.state = {kind: _gathered(part) for kind, part in whole.items()}
        dist.barrier()
    return found


def ends_after(outcome: StepOutcome) -> bool:
    """Whether a step with this outcome ends the run."""

    class Fixed:
        def train(self, *_: object, **__: object) -> StepOutcome:
            return outcome

    with group():
        state = replace(_train_state({}, STEPS), engine=Fixed())  # type: ignore[arg-type]
        try:
            loop.train_step(state, 0, iter(()))
        except NonFinite:
            return True
        return False


def _note(found: FormatRun, state: TrainState, _: StepResult) -> None:
    found.weights.append(_gathered(state.engine.state()["parameters"]))


def _gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the whole tensors, on rank 0."""
    whole = {name: gathered(tensor).clone() for name, tensor in tensors.items()}
    return whole if dist.get_rank() == 0 else {}


def _train_state(changes: Mapping[str, Any], end: int) -> TrainState:
    world, rank = dist.get_world_size(), dist.get_rank()
    config = models.run_config(
        Path("model"), Path("data"), Path("output"),
        **{
            "mesh__processes_per_node": world, "mesh__data_parallel": world, "schedule__max_steps": end,
            "batch": {"per_device": 4 // world, "accumulation": 1}, **changes,
        },
    )  # fmt: skip
    model: nn.Module = models.llama()
    if config.lora is not None:
        model = with_random_b(models.llama(), config.lora)
    environment.seed(config.seed, rank)
    layout = mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))
    data = rows(29)
    sharding = BatchSharding(config.batch.per_device, world)
    return TrainState(
        config, layout, engines.build(model, config, layout), data, sampler(config, len(data)), sharding
    )
