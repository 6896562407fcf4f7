"""Three steps of a tiny model of any architecture, on several ranks, and what is published of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from finetune_api.runtime.choices import Engine, Method
from finetune_trainer import adapters, engines, export, loop, mesh, model, result
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.model_export import Casting, gathered
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import architectures, models
from trainer.parity_cases import rows
from trainer.result_work import card, logits

STEPS = 3


@dataclass(frozen=True)
class Case:
    kind: str
    method: Method
    engine: Engine
    precision: str = "fp32"
    """Of the run, and of the base model's files."""
    router_loss: bool = False
    quantised: str = ""
    """How the base model is; its result is in bf16."""

    def __str__(self) -> str:
        return f"{self.base}, {self.method}, {self.engine}"

    @property
    def base(self) -> str:
        return f"{self.kind} in {self.quantised or self.precision}{' with router loss' if self.router_loss else ''}"

    @property
    def plain(self) -> str:
        """The base model for plain transformers: a quantised one in bf16, by an independent computation."""
        return f"{self.base} as bf16" if self.quantised else self.base


@dataclass
class Trained:
    """What rank 0 knows after the last step."""

    losses: list[float]
    logits: Tensor
    weights: Mapping[str, Tensor]
    """All of them, whole, by their names in the model."""
    frozen: frozenset[str]


def train_all(cases: list[Case], bases: Path, outputs: Path) -> dict[str, Trained]:
    """Each case starts from its folder in `bases` and publishes into `outputs`/case."""
    return {str(case): _train(case, bases / case.base, outputs / str(case)) for case in cases}


def _train(case: Case, base: Path, output: Path) -> Trained:
    lora = {"lora": models.lora()} if case.method is Method.LORA else {}
    config = models.run_config(
        base, base, output, method=case.method, engine=case.engine, precision=case.precision,
        mesh__processes_per_node=2, mesh__data_parallel=2,
        batch={"per_device": 1, "accumulation": 2}, schedule__max_steps=STEPS, **lora,
    )  # fmt: skip
    torch.manual_seed(0)  # of the adapters
    rank = dist.get_rank()
    layout = mesh.build(config, RankInfo(rank, 2, rank, torch.device("cpu")))
    loaded: Any = model.load(base, config, engines.kept(config, layout), layout.rank_info.device)
    adapted = loaded if config.lora is None else adapters.attach(loaded, config.lora)
    engine = engines.build(adapted, config, layout)
    data = _rows()
    found: list[float] = []
    state = TrainState(config, layout, engine, data, sampler(config, len(data)), BatchSharding(1, 2))
    loop.fit(state, 0, [lambda step: found.append(step.loss)])
    about = card(case.method, base)
    trained = engine.state()["parameters"]
    if rank == 0:
        output.mkdir()
    dist.barrier()
    result.publish(output, export.Publication(adapted, trained, base, about, Casting(config, STEPS)))
    return Trained(
        found,
        logits(adapted),
        {name: gathered(parameter).clone() for name, parameter in adapted.named_parameters()},
        frozenset(name for name, parameter in adapted.named_parameters() if not parameter.requires_grad),
    )


def _rows() -> Rows:
    found = rows(16, longest=16)
    return replace(found, tokens=found.tokens % (architectures.VOCABULARY - 8))  # without those of images


def own_class(folder: Path, **settings: Any) -> PreTrainedModel:
    """Loaded by the class that config.json names."""
    [name] = transformers.AutoConfig.from_pretrained(folder).architectures
    found: PreTrainedModel = getattr(transformers, name).from_pretrained(folder, **settings)
    return found


def published(case: Case, base: Path, output: Path) -> nn.Module:
    """The result, loaded by plain transformers or PEFT; `base` for the latter."""
    torch.set_num_threads(1)  # as in the ranks, whose bits are wanted
    folder = output / "result"
    if case.method is Method.LORA:
        return PeftModel.from_pretrained(own_class(base, dtype=torch.float32), folder)
    return own_class(folder)
