"""What ranks do in the tests of adapters on the experts of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from finetune_api.runtime.choices import Engine, Method, Precision
from finetune_api.runtime.run_config import Lora
from finetune_trainer import activations, adapters, architecture, engines, environment, loop, mesh, model
from finetune_trainer.collate import collate
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import architectures, models, result_work, unsynced
from trainer.modules_to_save_work import loaded
from trainer.parity_cases import group, rows
from trainer.qlora_work import SAME, Run

STEPS, ROWS = 10, 23
CPU = torch.device("cpu")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "experts and layers": (
        {"target_parameters": EXPERTS},
        {"target_parameters": list(EXPERTS), "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    ),
    "experts alone": (
        {"target_parameters": EXPERTS, "target_modules": ()},
        {"target_parameters": list(EXPERTS), "target_modules": []},
    ),
    "one of two": (
        {"target_parameters": ("mlp.experts.gate_up_proj",), "target_modules": (), "rank": 3, "rslora": True},
        {"target_parameters": ["mlp.experts.gate_up_proj"], "target_modules": [], "r": 3, "use_rslora": True},
    ),
    "ranks of a layer": (
        {
            "target_parameters": EXPERTS, "target_modules": ("q_proj",), "layers": (1,),
            "rank_pattern": (("experts.down_proj", 2), ("q_proj", 8)), "alpha_pattern": (("gate_up_proj", 3.0),),
        },
        {
            "target_parameters": [f"layers.1.mlp.{name}" for name in EXPERTS],
            "target_modules": ["layers.1.self_attn.q_proj"],
            "rank_pattern": {"experts.down_proj": 2, "q_proj": 8}, "alpha_pattern": {"gate_up_proj": 3.0},
        },
    ),
}  # fmt: skip
"""Settings of adapters: ours, and PEFT's."""


def mixture(kind: str = "qwen3_moe") -> PreTrainedModel:
    """Random, with two layers of four experts, and tokens for `models.save`."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **architectures.KINDS[kind] | {"vocab_size": 1024})
    made: PreTrainedModel = architecture.auto_class(config).from_config(config)
    return made


@dataclass(frozen=True)
class Job:
    adapter: str = "experts and layers"
    engine: Engine = Engine.SINGLE
    precision: Precision = Precision.FP32
    plain: bool = False
    """With PEFT's wrappers."""
    recompute: bool = False
    synced: bool = True

    def __str__(self) -> str:
        marks = (" plain" * self.plain, " recomputed" * self.recompute, " without gradient sync" * (not self.synced))
        return f"{self.engine} {self.adapter} {self.precision}{''.join(marks)}"


def runs(folder: Path, jobs: Sequence[Job]) -> dict[str, Run]:
    torch.set_num_threads(1)
    with group():
        return {str(job): _run(folder, job) for job in jobs}


def _run(folder: Path, job: Job) -> Run:
    world = world_size()
    wanted = models.run_config(
        folder, Path("train.jsonl"), Path("output"), method=Method.LORA, lora=models.lora(**ADAPTERS[job.adapter][0]),
        precision=job.precision, engine=job.engine, mesh__processes_per_node=world, mesh__data_parallel=world,
        batch={"per_device": 1, "accumulation": 4 // world}, schedule__max_steps=STEPS, schedule__epochs=9,
    )  # fmt: skip
    layout = mesh.build(wanted, RankInfo(rank(), world, rank(), CPU))
    base = model.load(folder, wanted, engines.kept(wanted, layout), CPU)
    lora = wanted.lora
    assert lora is not None
    adapted = peft_s(base, lora, job.adapter) if job.plain else with_b(adapters.attach, base, lora)
    if job.recompute:
        activations.recompute(adapted, 2)
    engine = (engines.build if job.synced else unsynced.build)(adapted, wanted, layout)
    data, found, same = rows(ROWS), Run(), collate(rows(ROWS), SAME)
    found.evaluations.append(float(engine.evaluate(same)))
    sharding = BatchSharding(wanted.batch.per_device, layout.data_size)
    state = TrainState(wanted, layout, engine, data, sampler(wanted, len(data)), sharding)
    loop.fit(state, 0, [lambda result: found.losses.append(result.loss)])
    return found


def with_b(attach: Any, base: Any, lora: Any) -> Any:
    """With a B that is not zero: else no gradient reaches A."""
    environment.seed(11)
    adapted = attach(base, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def peft_s(base: Any, lora: Lora, adapter: str) -> Any:
    theirs = {"r": lora.rank, "lora_alpha": lora.alpha, **ADAPTERS[adapter][1]}
    return with_b(get_peft_model, base, LoraConfig(task_type="CAUSAL_LM", **theirs))


def published(base: Path, output: Path, kind: str, adapter: str) -> tuple[Tensor, Tensor]:
    """Logits of an adapter of ours, and of its result that plain PEFT has loaded."""
    with group():
        architectures.model(kind).save_pretrained(base)
        adapted = with_b(adapters.attach, loaded(base), Lora(**models.lora(**ADAPTERS[adapter][0])))
        result = result_work.publish(output, adapted, base, Method.LORA)
        again = PeftModel.from_pretrained(loaded(base), str(result))
        return result_work.logits(adapted), result_work.logits(again)
