"""The same small job on any number of ranks, with a record of everything that must be equal on every layout.

Run by ranks from test_parity.py and by the workers of a real launcher (parity_node.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune_api.runtime.choices import Engine
from finetune_api.runtime.run_config import Lora, RunConfig
from finetune_trainer import adapters, chunked_loss, engines, environment, loop, mesh
from finetune_trainer.collate import TokenBatch
from finetune_trainer.engines import StepOutcome
from finetune_trainer.engines.zero import Zero
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.model import storage_dtype
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models, unsynced

STEPS = 20
ROWS = 29
"""Four rows a step: the eighth step of an epoch has one row left, and none for the second of two ranks."""
STEPS_PER_EPOCH = 8
CHUNK = chunked_loss.CPU_CHUNK
SMALL_CHUNK = 3 * 1024
"""Logits of three targets: in fp32, several ranks compute their loss in chunks, and one process at once."""


@dataclass(frozen=True)
class ParityCase:
    engine: Engine
    tied: bool
    lora: bool
    synced: bool = True
    steps: int = STEPS
    precision: str = "fp32"
    rows: int = 4
    """Of an optimizer step."""
    per_device: int | None = None
    """None: 2 in one process, else 1."""
    optimizer: str = "adamw"
    rounding: str = "stochastic"
    offload: tuple[str, ...] = ()
    """What DeepSpeed keeps in the memory of the host: fields of `Offload`."""

    @property
    def job(self) -> str:
        """What is trained, independent of the layout."""
        return f"{'tied' if self.tied else 'untied'} {'lora' if self.lora else 'fft'}"

    def __str__(self) -> str:
        optimizer = "" if self.optimizer == "adamw" else f" {self.optimizer}"
        optimizer += f" offloads {' and '.join(self.offload)}" if self.offload else ""
        synced = "" if self.synced else " without gradient sync"
        return f"{self.engine} {self.job} {self.precision}{optimizer}{synced}"


@dataclass
class Trace:
    """What a run did, the same on every rank."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Of the first step, before clipping, unsharded."""


def cases(*kinds: Engine, **settings: Any) -> list[ParityCase]:
    return [ParityCase(*case, **settings) for case in itertools.product(kinds, (True, False), (False, True))]


def everywhere(*kinds: Engine) -> list[ParityCase]:
    """Every job with gradient sync over the whole run, and without it over the first steps."""
    return cases(*kinds) + cases(*kinds, synced=False, steps=3)


def traces(which: list[ParityCase]) -> dict[str, Trace]:
    """The trace of every case. On a world of one there may be no process group yet."""
    torch.set_num_threads(1)
    with group():
        rank, world = dist.get_rank(), dist.get_world_size()
        rank_info = RankInfo(rank, world, rank, torch.device("cpu"))
        return {str(case): trace(case, rank_info) for case in which}


def trace(case: ParityCase, rank_info: RankInfo) -> Trace:
    config = _config(case, rank_info.world_size)
    several = case.engine is not Engine.SINGLE and case.precision == "fp32"
    chunked_loss.CPU_CHUNK = SMALL_CHUNK if several else CHUNK  # this process is a rank of its own
    model: nn.Module = models.llama(tied=case.tied, layers=2)
    if config.lora is not None:
        model.to(storage_dtype(config))
        model = with_random_b(model, config.lora)
    build = engines.build if case.synced else unsynced.build
    layout = mesh.build(config, rank_info)
    recording = Recording(build(model, config, layout))
    data = rows(ROWS)
    train_state = TrainState(
        config,
        layout,
        recording,
        data,
        sampler(config, len(data)),
        BatchSharding(config.batch.per_device, layout.data_size),
    )
    found = Trace(gradients=recording.first)

    def record(result: StepResult) -> None:
        found.losses.append(result.loss)
        found.norms.append(result.grad_norm)

    loop.fit(train_state, 0, [record])
    return found


def rows(count: int, *, longest: int = 24, seed: int = 0) -> Rows:
    """Random rows of 6 tokens and more, each with another share of targets."""
    random = np.random.default_rng(seed)
    lengths = random.integers(6, longest + 1, count)
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    tokens = random.integers(0, 1024, offsets[-1], dtype=np.int32)
    targets = random.random(offsets[-1]) < np.repeat(random.uniform(0.05, 0.95, count), lengths)
    targets[offsets[:-1]] = False
    targets[offsets[1:] - 1] = True
    return Rows(tokens, targets, offsets, np.arange(1, count + 1, dtype=np.int32))


def with_random_b(model: Any, lora: Lora) -> nn.Module:
    """Adapters as PEFT makes them, but with a B that is not zero: else no gradient reaches A."""
    environment.seed(11)
    adapted = adapters.attach(model, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


class Recording:
    """An engine that keeps the gradients of its first step, whole and before clipping."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.model: nn.Module = engine.model
        self.state_is_a_copy: bool = engine.state_is_a_copy
        self.first: dict[str, Tensor] = {}
        if isinstance(engine, Zero):
            self._update = engine._engine.optimizer.step
            engine._engine.optimizer.step = self._zero_step
        else:
            self._update = engine._optimizer.step
            engine._optimizer.step = self._step

    def train(self, micro_batches: Iterable[TokenBatch], **settings: Any) -> StepOutcome:
        outcome: StepOutcome = self._engine.train(micro_batches, **settings)
        return outcome

    def evaluate(self, batch: TokenBatch) -> Tensor:
        total: Tensor = self._engine.evaluate(batch)
        return total

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._engine.state()
        return state

    def resumed(self, state: Mapping[str, Any], steps: int) -> None:
        self._engine.resumed(state, steps)

    def _zero_step(self) -> None:
        if not self.first:
            get = self._engine._deepspeed.utils.safe_get_full_grad
            self.first.update({name: get(p).clone() for name, p in self._engine._parameters.items()})
        self._update()

    def _step(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], *settings: Any) -> None:
        if not self.first:
            for name, gradient in self._engine._weights.whole(gradients).items():
                full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                self.first[name] = full.clone()
        self._update(weights, gradients, *settings)


def _config(case: ParityCase, world: int) -> RunConfig:
    changes: dict[str, Any] = {"method": "lora", "lora": models.lora()} if case.lora else {}
    nodes = 2 if case.engine is Engine.HSDP else 1
    per_device = case.per_device or max(2 // world, 1)
    return models.run_config(
        Path("model"),
        Path("train.jsonl"),
        Path("output"),
        engine=case.engine,
        precision=case.precision,
        rounding=case.rounding,
        optimizer__name=case.optimizer,
        offload=dict.fromkeys(case.offload, True) or None,
        mesh__nodes=nodes,
        mesh__processes_per_node=world // nodes,
        mesh__data_parallel=world,
        batch={"per_device": per_device, "accumulation": case.rows // (per_device * world)},
        schedule__epochs=9,
        schedule__max_steps=case.steps,
        **changes,
    )


@contextmanager
def group() -> Iterator[None]:
    """A process group of one, unless there is one already."""
    if dist.is_initialized():
        yield
        return
    store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it in __all__
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()
