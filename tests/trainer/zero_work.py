"""Jobs with DeepSpeed's ZeRO, run by ranks from test_zero.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import engines, mesh, model, snapshot
from finetune_trainer.collate import TokenBatch, collate
from finetune_trainer.engines import StepOutcome, TrainingEngine
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import ModelRefused
from finetune_trainer.mesh import RankMesh
from finetune_trainer.placeholders import Keep
from trainer import parity_cases
from trainer.parity_cases import ParityCase, Trace, group, rows

SPOILED = ("loss and gradients", "loss only", "gradients only")


def traces(which: Mapping[str, ParityCase]) -> dict[str, Trace]:
    torch.set_num_threads(1)
    with group():
        rank, world = dist.get_rank(), dist.get_world_size()
        rank_info = RankInfo(rank, world, rank, torch.device("cpu"))
        return {name: parity_cases.trace(case, rank_info) for name, case in which.items()}


def loaded(folder: Path, configs: Mapping[str, RunConfig]) -> dict[str, tuple[dict[str, Tensor], int, int]]:
    """By name: the weights that training begins with, the elements of the files that this rank has kept while it
    loaded, and those that are in the modules of the model between two steps."""
    found = {}
    for name, config in configs.items():
        layout, kept = _layout(config), list[int]()
        keep = partial(_counted, engines.kept(config, layout), kept)
        engine = engines.build(model.load(folder, config, keep, torch.device("cpu")), config, layout)
        between = [parameter.numel() for parameter in engine.model.parameters()]
        found[name] = _whole(engine.state()["parameters"]), sum(kept), sum(between)
    return found


def _counted(keep: Keep, kept: list[int], weight: Tensor) -> Tensor:
    part = keep(weight)
    kept.append(part.numel())
    return part


def stepped(configs: Mapping[str, RunConfig], folder: Path) -> dict[str, dict[str, Tensor]]:
    """By name: the weights after two steps."""
    found = {}
    for name, config in configs.items():
        engine, rank = _engine(config, folder), dist.get_rank()
        for step in range(2):
            batches = [collate(rows(4), [2 * micro + rank]) for micro in range(2)]
            engine.train(batches, targets=20, learning_rate=1e-3 * (step + 1), max_norm=1.0, stop=lambda: False)
        found[name] = _whole(engine.state()["parameters"])
    return found


def kept(configs: Mapping[str, RunConfig], folder: Path) -> dict[str, tuple[bool, bool]]:
    """Whether what a checkpoint gets of the first step is as it was after the second, and whether that has others."""
    found = {}
    for name, config in configs.items():
        engine, batches = _engine(config, folder), [collate(rows(2), [dist.get_rank()])]
        step = partial(engine.train, batches, targets=10, learning_rate=1e-3, max_norm=1.0, stop=lambda: False)
        step()
        first = snapshot.take(engine.state(), {}, copy=not engine.state_is_a_copy).pieces
        values = [piece.values.clone() for piece in first]
        step()
        second = snapshot.take(engine.state(), {}).pieces
        same = all(torch.equal(piece.values, value) for piece, value in zip(first, values, strict=True))
        moved = any(not torch.equal(a.values, b.values) for a, b in zip(first, second, strict=True))
        found[name] = same, moved
    return found


def spoiled(configs: Mapping[str, RunConfig], folder: Path) -> dict[str, tuple[StepOutcome, bool]]:
    """A step whose loss, or whose gradients only, are not finite; and whether the state is as before it."""
    return {f"{name} {what}": _spoiled(config, folder, what) for name, config in configs.items() for what in SPOILED}


def _spoiled(config: RunConfig, folder: Path, what: str) -> tuple[StepOutcome, bool]:
    engine, rank = _engine(config, folder), dist.get_rank()
    before = {kind: _whole(tensors) for kind, tensors in engine.state().items()}
    if rank == 0:
        _spoil(engine, what)
    outcome = engine.train(
        [collate(rows(2), range(rank, rank + 1))], targets=10, learning_rate=1e-3, max_norm=1.0, stop=lambda: False
    )
    after = {kind: _whole(tensors) for kind, tensors in engine.state().items()}
    same = all(torch.equal(before[kind][name], after[kind][name]) for kind in before for name in before[kind])
    return outcome, same


def _spoil(engine: Any, what: str) -> None:
    if what == "loss only":
        backward = engine._loss.backward
        engine._loss.backward = lambda *arguments: backward(*arguments) + torch.inf
        return
    change: Callable[[Tensor], Tensor] = _Spoiled.apply if what == "gradients only" else _not_a_number
    engine.model.get_submodule("model.norm").register_forward_hook(lambda _, __, output: change(output))


def _not_a_number(states: Tensor) -> Tensor:
    return states * torch.nan


def skipping(configs: Mapping[str, RunConfig], folder: Path) -> dict[str, str]:
    """What is said where the first of two micro batches does not use a part of the model, and the second does."""
    return {name: _skipping(config, folder) for name, config in configs.items()}


def _skipping(config: RunConfig, folder: Path) -> str:
    engine, rank = _engine(config, folder), dist.get_rank()
    part: Any = engine.model.get_submodule("model.layers.3.mlp")
    whole, used = part.forward, False

    def forward(states: Tensor) -> Tensor:
        return whole(states) if used else torch.zeros_like(states)

    def batches() -> Iterator[TokenBatch]:
        nonlocal used
        yield collate(rows(4), range(rank, rank + 1))
        used = True
        yield collate(rows(4), range(2 + rank, 3 + rank))

    with patch.object(part, "forward", forward), pytest.raises(ModelRefused) as refused:
        engine.train(batches(), targets=20, learning_rate=1e-3, max_norm=1.0, stop=lambda: False)
    return str(refused.value)


def _engine(config: RunConfig, folder: Path) -> TrainingEngine:
    layout = _layout(config)
    base = model.load(folder, config, engines.kept(config, layout), torch.device("cpu"))
    return engines.build(base, config, layout)


def _layout(config: RunConfig) -> RankMesh:
    rank, world = dist.get_rank(), dist.get_world_size()
    return mesh.build(config, RankInfo(rank, world, rank, torch.device("cpu")))


class _Spoiled(torch.autograd.Function):
    """Nothing in the forward pass, and an infinite gradient."""

    @staticmethod
    def forward(_: object, states: Tensor) -> Tensor:
        return states.clone()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return gradient + torch.inf


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.full_tensor() for name, tensor in tensors.items()}  # type: ignore[attr-defined]
