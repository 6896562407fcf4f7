"""QLoRA through the trainer's own loading, on any number of ranks, and the same with bitsandbytes' layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetune_api.runtime.choices import BaseFormat, Engine, Method, Precision
from finetune_api.runtime.run_config import BaseQuantisation, RunConfig
from finetune_trainer import (
    adapters,
    decomposition,
    engines,
    environment,
    initial_factors,
    loop,
    mesh,
    model,
    placeholders,
)
from finetune_trainer.collate import collate
from finetune_trainer.collectives import rank, world_size
from finetune_trainer.decomposition import InitialFactors
from finetune_trainer.environment import RankInfo
from finetune_trainer.loop import TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models, result_work, unsynced
from trainer.parity_cases import group, rows
from trainer.ranks import run_ranks, values

ROWS, STEPS, EVALUATED = 29, 20, 7
SAME = range(4)
"""Rows that every rank evaluates."""
LONGEST = 24
"""Targets of one of them, at most."""
CPU = torch.device("cpu")
TOKENS = (3, 17, 40)
"""Whose rows are trained by the adapter "tokens"."""
NONE: Mapping[str, InitialFactors] = {}
INTEGERS = BaseQuantisation(format=BaseFormat.INT8, double=False)


ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "rslora": ({"rslora": True}, {"use_rslora": True}),
    "patterns": (
        {
            "rank_pattern": (("layers.1.self_attn.q_proj", 8), ("q_proj", 2)),
            "alpha_pattern": (("layers.1.self_attn.q_proj", 40.0), ("q_proj", 3.0)),
        },
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 40.0, "q_proj": 3.0},
        },
    ),
    "expression": ({"target_modules": (r".*\.[01]\..*_proj",)}, {"target_modules": r".*\.[01]\..*_proj"}),
    "layers": (
        {"target_modules": ("q_proj", "up_proj"), "layers": (1,)},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    ),
    "ends": (
        {"modules_to_save": ("embed_tokens", "lm_head")},
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "head": (
        {"modules_to_save": ("lm_head",)},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "norms and a layer": (
        {"modules_to_save": ("norm", "layers.1.mlp.up_proj")},
        {"modules_to_save": ["norm", "layers.1.mlp.up_proj"]},
    ),
    "biases": ({"bias": "all"}, {"bias": "all"}),
    "biases of adapted layers": (
        {"bias": "lora_only", "target_modules": ("q_proj", "up_proj")},
        {"bias": "lora_only", "target_modules": ["q_proj", "up_proj"]},
    ),
    "biases without adapters": (
        {"bias": "all", "target_modules": ("q_proj", "up_proj")},
        {"bias": "all", "target_modules": ["q_proj", "up_proj"]},
    ),
    "dora and biases": ({"dora": True, "bias": "all"}, {"use_dora": True, "bias": "all"}),
    "biases, a norm and a layer": (
        {"bias": "all", "modules_to_save": ("norm", "layers.1.mlp.up_proj")},
        {"bias": "all", "modules_to_save": ["norm", "layers.1.mlp.up_proj"]},
    ),
    "tokens": (
        {"token_ids": TOKENS},
        {"trainable_token_indices": {"embed_tokens": list(TOKENS), "lm_head": list(TOKENS)}},
    ),
    "dora and ends": (
        {"dora": True, "modules_to_save": ("embed_tokens", "lm_head")},
        {"use_dora": True, "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "pissa": ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "olora": ({"init": "olora"}, {"init_lora_weights": "olora"}),
    "pissa with rslora and patterns": (
        {"init": "pissa", "rslora": True, "rank_pattern": (("q_proj", 2),), "alpha_pattern": (("k_proj", 3.0),)},
        {
            "init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"k_proj": 3.0},
        },
    ),
    "olora and ends": (
        {"init": "olora", "modules_to_save": ("embed_tokens", "lm_head")},
        {"init_lora_weights": "olora", "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
}  # fmt: skip
"""Settings of adapters: ours, and PEFT's."""
UNQUANTISED = ["lm_head", "layers.1.mlp.up_proj"]
"""Modules that transformers is told to leave in the compute format where an adapter trains one of them in full."""


@dataclass(frozen=True)
class Job:
    engine: Engine = Engine.SINGLE
    format: str = "nf4"
    double: bool = True
    steps: int = STEPS
    synced: bool = True
    plain: bool = False
    """With the layers of transformers, PEFT and bitsandbytes."""
    adapter: str = ""
    """One of ADAPTERS."""
    method: Method = Method.QLORA
    precision: Precision = Precision.FP32

    def __str__(self) -> str:
        marks = (" double" * self.double, " without gradient sync" * (not self.synced), " plain" * self.plain)
        base = self.format if self.method is Method.QLORA else self.method
        return f"{self.engine} {base} {self.adapter} {self.precision} {self.steps} steps{''.join(marks)}"


@dataclass
class Run:
    losses: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    """Summed NLL of the rows SAME, before the first step and after every seventh."""


def runs(folder: Path, jobs: Sequence[Job]) -> dict[str, Run]:
    torch.set_num_threads(1)
    with group():
        return {str(job): _run(folder, job) for job in jobs}


def on_ranks(folder: Path, worlds: Mapping[int, Sequence[Job]]) -> dict[str, Run]:
    """The runs of all jobs, which are given by number of ranks; every rank has to tell the same losses."""
    whole: dict[str, Run] = {}
    for world, jobs in worlds.items():
        first, *others = values(run_ranks(world, runs, folder, jobs))
        assert all(other[name].losses == first[name].losses for other in others for name in first)
        whole |= first
    return whole


def far(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def require_same_as_alone(found: Mapping[str, Run], job: Job, loss: float) -> None:
    """A run on several ranks has the forward pass of one process by bits, and its losses, in nats, within `loss`."""
    run, alone = found[str(job)], found[str(replace(job, engine=Engine.SINGLE))]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= loss
    assert far(run.evaluations, alone.evaluations) <= loss * len(SAME) * LONGEST


def _run(folder: Path, job: Job) -> Run:
    wanted = config(folder, job)
    layout = mesh.build(wanted, RankInfo(rank(), world_size(), rank(), CPU))
    initial = initial_factors.of_run(folder, wanted, CPU, lambda: None)
    keep = engines.kept(wanted, layout)
    base = plain(folder, wanted, job) if job.plain else model.load(folder, wanted, keep, CPU, initial)
    engine = (engines.build if job.synced else unsynced.build)(_adapted(base, wanted, job, initial), wanted, layout)
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
        method=job.method,
        quantisation={"format": job.format, "double": job.double} if job.method is Method.QLORA else None,
        lora=models.lora(**ADAPTERS[job.adapter][0]),
        precision=job.precision,
        engine=job.engine,
        mesh__nodes=nodes,
        mesh__processes_per_node=world // nodes,
        mesh__data_parallel=world,
        batch={"per_device": 1, "accumulation": 4 // world},
        schedule__max_steps=job.steps,
        schedule__epochs=9,
    )  # fmt: skip


def plain(folder: Path, wanted: RunConfig, job: Job) -> Any:
    """The base as transformers loads it in four bits; for eight bits with their numbers in plain layers."""
    dtype, integers = model.storage_dtype(wanted), wanted.quantisation == INTEGERS
    unquantised = UNQUANTISED if job.adapter == "norms and a layer" else None
    how = None
    if wanted.quantisation is not None and not integers:
        how = _bits_and_bytes(wanted.quantisation, dtype, unquantised)
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=how, dtype=dtype, device_map={"": "cpu"}
    )
    for module in found.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it would change its codes in eval()
    if integers:
        round_to_integers(found)
    model.prepare(found, wanted)
    return found


@torch.no_grad()
def round_to_integers(base: Any) -> None:
    """By the formula of LLM.int8."""
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            largest = module.weight.abs().amax(1, keepdim=True)
            module.weight.copy_((module.weight * (127 / largest)).round() * (largest / 127))


def _bits_and_bytes(how: BaseQuantisation, dtype: torch.dtype, unquantised: list[str] | None) -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=how.format,
        bnb_4bit_use_double_quant=how.double,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=unquantised,
    )  # type: ignore[no-untyped-call]


def _adapted(base: Any, wanted: RunConfig, job: Job, initial: Mapping[str, InitialFactors] = NONE) -> nn.Module:
    """With a B that is not zero: else no gradient reaches A."""
    lora = wanted.lora
    assert lora is not None
    environment.seed(11)
    if job.plain:
        theirs: dict[str, Any] = {"target_modules": "all-linear", **ADAPTERS[job.adapter][1]}
        settings = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), **theirs)
        adapted: nn.Module = get_peft_model(base, settings)
    else:
        adapted = adapters.attach(base, lora)
        decomposition.begin(adapted, initial)
    if decomposition.changes_base(lora):
        return adapted
    environment.seed(12)  # PEFT draws numbers for a head that is tied
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapted


def published(folder: Path, output: Path, job: Job) -> tuple[Tensor, Tensor]:
    """Logits of an adapter on our base, and of its result, which plain PEFT has loaded onto transformers' base."""
    with group():
        wanted = config(folder, job)
        base = model.load(folder, wanted, lambda weight: weight, CPU)
        placeholders.fill(base)
        adapted: Any = _adapted(base, wanted, job)
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name or (parameter.requires_grad and "lora_" not in name):
                parameter.data *= 1.25
        result = result_work.publish(output, adapted, folder, job.method)
        again: Any = PeftModel.from_pretrained(plain(folder, wanted, job), str(result))
        return result_work.logits(adapted), result_work.logits(again)
