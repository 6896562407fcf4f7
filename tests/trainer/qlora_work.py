"""QLoRA through the trainer's own loading, on any number of ranks, and the same with bitsandbytes' layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune_api.runtime.choices import Engine, Method
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapters, engines, environment, loop, mesh, model, placeholders
from finetune_trainer.collate import collate
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models, result_work, unsynced
from trainer.parity_cases import group, rows

ROWS, STEPS, EVALUATED = 29, 20, 7
SAME = range(4)
"""Rows that every rank evaluates."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    engine: Engine = Engine.SINGLE
    format: str = "nf4"
    double: bool = True
    steps: int = STEPS
    synced: bool = True
    plain: bool = False
    """With the layers of transformers, PEFT and bitsandbytes."""

    def __str__(self) -> str:
        marks = (" double" * self.double, " without gradient sync" * (not self.synced), " plain" * self.plain)
        return f"{self.engine} {self.format} {self.steps} steps{''.join(marks)}"


@dataclass
class Run:
    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    """Summed NLL of the rows SAME, before the first step and after every seventh."""


def runs(folder: Path, jobs: Sequence[Job]) -> dict[str, Run]:
    torch.set_num_threads(1)
    with group():
        return {str(job): _run(folder, job) for job in jobs}


def _run(folder: Path, job: Job) -> Run:
    wanted = config(folder, job)
    layout = mesh.build(wanted, RankInfo(rank(), world_size(), rank(), CPU))
    base = plain(folder, wanted) if job.plain else model.load(folder, wanted, engines.kept(wanted, layout), CPU)
    engine = (engines.build if job.synced else unsynced.build)(_adapted(base, wanted, job), wanted, layout)
    data, found, same = rows(ROWS), Run(), collate(rows(ROWS), SAME)

    def evaluate() -> None:
        total: Tensor = engine.evaluate(same)
        found.evaluations.append(float(total))

    def note(result: loop.StepResult) -> None:
        found.losses.append(result.loss)
        if result.step % EVALUATED == 0:
            evaluate()

    evaluate()
    sharding = BatchSharding(wanted.batch.per_device, layout.data_size)
    loop.fit(TrainState(wanted, layout, engine, data, sampler(wanted, len(data)), sharding), 0, [note])
    return found


def config(folder: Path, job: Job) -> RunConfig:
    world = world_size()
    nodes = 2 if job.engine is Engine.HSDP else 1
    return models.run_config(
        folder, Path("train.jsonl"), Path("output"),
        method="qlora",
        quantisation={"format": job.format, "double": job.double},
        lora=models.lora(),
        engine=job.engine,
        mesh__nodes=nodes,
        mesh__processes_per_node=world // nodes,
        mesh__data_parallel=world,
        batch={"per_device": 1, "accumulation": 4 // world},
        schedule__max_steps=job.steps,
        schedule__epochs=9,
    )  # fmt: skip


def plain(folder: Path, wanted: RunConfig) -> Any:
    """The base as transformers loads it in four bits."""
    assert wanted.quantisation is not None
    dtype = model.storage_dtype(wanted)
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=wanted.quantisation.format,
        bnb_4bit_use_double_quant=wanted.quantisation.double,
        bnb_4bit_compute_dtype=dtype,
    )  # type: ignore[no-untyped-call]
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=dtype, device_map={"": "cpu"}
    )
    for module in found.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it would change its codes in eval()
    model.prepare(found, wanted)
    return found


def _adapted(base: Any, wanted: RunConfig, job: Job) -> nn.Module:
    """With a B that is not zero: else no gradient reaches A."""
    lora = wanted.lora
    assert lora is not None
    environment.seed(11)
    if job.plain:
        settings = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules="all-linear")
        adapted: nn.Module = get_peft_model(base, settings)
    else:
        adapted = adapters.attach(base, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def published(folder: Path, output: Path) -> tuple[Tensor, Tensor]:
    """Logits of an adapter on our base, and of its result, which plain PEFT has loaded onto bitsandbytes' base."""
    with group():
        wanted = config(folder, Job())
        base = model.load(folder, wanted, lambda weight: weight, CPU)
        placeholders.fill(base)
        adapted: Any = _adapted(base, wanted, Job())
        result = result_work.publish(output, adapted, folder, Method.QLORA)
        again: Any = PeftModel.from_pretrained(plain(folder, wanted), str(result))
        return result_work.logits(adapted), result_work.logits(again)
