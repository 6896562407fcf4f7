"""Parts of a run, each in a process group of its own, with digests of all that a checkpoint has to bring back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from finetune_api.runtime.choices import Engine
from finetune_api.runtime.run_config import RunConfig
from finetune_api.runtime.zero import STAGES
from finetune_trainer import (
    checkpoint,
    engines,
    environment,
    loop,
    mesh,
    model,
    quantised_base,
    snapshot,
    whole_modules,
)
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.engines import TrainingEngine
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.stop import StopRequested
from finetune_trainer.trainer import sampler
from trainer import models
from trainer.parity_cases import group, rows, with_random_b
from trainer.torch_ddp import TorchDdp

ROWS, ROWS_PER_STEP = 21, 8
"""The third step of each epoch has five rows: some ranks then have an empty micro batch."""
PLANNED_STEPS = 6
"""Of the learning rate's schedule."""


@dataclass(frozen=True)
class ResumeCase:
    engine: Engine
    lora: bool = False
    dora: bool = False
    whole: bool = False
    """With modules that are trained in full beside adapters."""
    rows: bool = False
    """With rows of tokens beside adapters."""
    precision: str = "fp32"
    dropout: float = 0.1
    quantised: bool = False
    """Adapters are on a base in four bits."""
    torch_ddp: bool = False
    """Gradients are summed by torch's DistributedDataParallel."""
    eight_bits: bool = False
    """Of the optimizer's moments, but for those of weights that are small."""
    offload: tuple[str, ...] = ()
    """What DeepSpeed keeps in the memory of the host: fields of `Offload`."""

    def __str__(self) -> str:
        method = "qlora" if self.quantised else "lora" if self.lora else "fft"
        kind = f"{method}{' dora' * self.dora}{' whole' * self.whole}{' rows' * self.rows}"
        besides = " by torch" * self.torch_ddp + " 8-bit moments" * self.eight_bits
        besides += f" offloads {' and '.join(self.offload)}" if self.offload else ""
        return f"{self.engine} {kind} {self.precision}{besides}"


@dataclass(frozen=True)
class Part:
    """What a part of a run did on one rank; the digests are of whole tensors, by kind and name."""

    losses: list[float]
    began_with: dict[str, str]
    ended_with: dict[str, str]


def parts(which: Mapping[str, ResumeCase], folder: Path, until: int) -> dict[str, Part]:
    """Each case, from the newest checkpoint in its folder (or from the start) to one after `until` steps."""
    torch.set_num_threads(1)
    with group() if any(case.engine in STAGES for case in which.values()) else nullcontext():  # DeepSpeed needs one
        return {name: _part(case, folder / name, until) for name, case in which.items()}


def _part(case: ResumeCase, output: Path, until: int) -> Part:
    output.mkdir(parents=True, exist_ok=True)
    train_state = _train_state(case)
    engine = train_state.engine
    start = checkpoint.latest(output)
    if start is not None:
        state = engine.state()
        checkpoint.load(output, start, state)
        engine.resumed(state, start)
    began_with = _digests(engine)
    losses: list[float] = []

    def record(result: StepResult) -> None:
        losses.append(result.loss)
        if result.step == until:
            raise StopRequested

    with suppress(StopRequested):
        loop.fit(train_state, start or 0, [record])
    checkpoint.save(output, until, snapshot.take(engine.state(), {}), keep=1, protect=set())
    return Part(losses, began_with, _digests(engine))


def _train_state(case: ResumeCase) -> TrainState:
    config = _config(case)
    layout = mesh.build(config, RankInfo(rank(), world_size(), rank(), torch.device("cpu")))
    base = models.llama(dropout=case.dropout, layers=2)
    for parameter in base.parameters():  # as it is loaded
        parameter.data = parameter.data.to(model.storage_dtype(config))
    model.prepare(base, config)
    if config.quantisation is not None:
        quantised_base.quantise(base, config.quantisation, whole_modules.chosen(base, config.lora))
    adapted: nn.Module = base if config.lora is None else with_random_b(base, config.lora)
    engine = (TorchDdp if case.torch_ddp else engines.build)(adapted, config, layout)
    data = rows(ROWS)
    environment.seed(config.seed, layout.data_rank)
    sharding = BatchSharding(config.batch.per_device, layout.data_size)
    return TrainState(config, layout, engine, data, sampler(config, len(data)), sharding)


def _config(case: ResumeCase) -> RunConfig:
    world = world_size()
    nodes = 2 if case.engine is Engine.HSDP else 1
    rank = 16 if case.eight_bits else 4
    modules = ("embed_tokens", "norm", "layers.1.mlp") if case.whole else ()
    lora = models.lora(
        rank=rank, dropout=case.dropout, dora=case.dora, modules_to_save=modules, token_ids=(3, 17) * case.rows
    )
    method: dict[str, Any] = {"method": "lora", "lora": lora} if case.lora else {}
    if case.quantised:
        method |= {"method": "qlora", "quantisation": {"format": "nf4", "double": True}}
    changes: dict[str, Any] = method | {
        "engine": case.engine,
        "precision": case.precision,
        "offload": dict.fromkeys(case.offload, True) or None,
        "rounding": "nearest" if case.engine in STAGES else "stochastic",
        "optimizer__name": "adamw_8bit" if case.eight_bits else "adamw",
        "mesh__nodes": nodes,
        "mesh__processes_per_node": world // nodes,
        "mesh__data_parallel": world,
        "batch": {"per_device": 1, "accumulation": ROWS_PER_STEP // world},
        "schedule": {"name": "cosine", "warmup_ratio": 0.2, "epochs": 9, "max_steps": PLANNED_STEPS},
    }
    return models.run_config(Path("model"), Path("train.jsonl"), Path("output"), **changes)


def _digests(engine: TrainingEngine) -> dict[str, str]:
    """Collective: sharded tensors are gathered."""
    found = {}
    for kind, tensors in engine.state().items():
        for name, tensor in tensors.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            found[f"{kind}.{name}"] = hashlib.sha256(whole.detach().numpy().tobytes()).hexdigest()
    return found
