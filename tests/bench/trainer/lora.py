"""LoRA and QLoRA: losses in bf16 against fp32, and a step against PEFT's forward pass."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bench.figures import Figure
from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import adapters, engines, environment, loop, mesh, preparation
from finetune_trainer.environment import RankInfo
from finetune_trainer.handoff import TRAIN
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.quantised_layer import QuantisedLinear
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models

from . import smollm2

STEPS, ROWS = 16, 8
RATE = 2e-4
NEAR = 0.02
"""Largest distance to a loss of fp32, in nats."""
ROUNDS, WARM_UP, TIMED = 3, 1, 4
TIMED_ROWS = 16
FASTER = 0.9
"""Largest share of a step of PEFT."""


METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {"method": "qlora", "quantisation": {"format": "nf4", "double": True}},
}


class Forward(StrEnum):
    """Whose forward pass it is, and the format of the adapters in it."""

    OURS = "ours"
    PEFT = "PEFT's"
    """With adapters in fp32, which get a copy of each input in fp32."""
    PEFT_IN_BF16 = "PEFT's on bf16 copies"
    """With the copies of this trainer, and gradients that are bf16 in each micro batch."""


@dataclass(frozen=True)
class Run:
    losses: list[float]
    seconds: list[float]
    """Processor time of each step."""


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        preparation.prepare(_config(Precision.FP32), 0, Path(folder), print)
        data = Rows.load(Path(folder) / TRAIN)
        for method, changes in METHODS.items():
            yield from _learning(method, changes, data)
        yield from _speed(data)


def _learning(method: str, changes: Mapping[str, Any], data: Rows) -> Iterator[Figure]:
    exact = _run(_config(Precision.FP32, **changes), data, Forward.OURS)
    print(_losses(f"{method}, fp32", exact), flush=True)
    for forward in Forward:
        found = _run(_config(Precision.BF16, **changes), data, forward)
        print(_losses(f"{method}, bf16, {forward}", found), flush=True)
        far = max(abs(a - b) for a, b in zip(exact.losses, found.losses, strict=True))
        most = NEAR if forward is Forward.OURS else None
        yield Figure(f"{method}, bf16, {forward}: furthest loss of {STEPS} from fp32's", far, "nats", most)


def _speed(data: Rows) -> Iterator[Figure]:
    """The fastest steps, by one thread: two wait for each other, busily, where the machine does something else."""
    torch.set_num_threads(1)
    seconds: dict[Forward, list[float]] = {forward: [] for forward in Forward}
    config = _config(
        Precision.BF16, batch={"per_device": TIMED_ROWS, "accumulation": 1}, schedule__max_steps=WARM_UP + TIMED
    )
    for _ in range(ROUNDS):
        for forward in Forward:
            seconds[forward] += _run(config, data, forward).seconds[WARM_UP:]
    fastest = {forward: min(found) for forward, found in seconds.items()}
    for forward, least in fastest.items():
        yield Figure(f"bf16, {forward}: processor time of a step", least, "s")
    for forward, most in ((Forward.PEFT, FASTER), (Forward.PEFT_IN_BF16, None)):
        share = fastest[Forward.OURS] / fastest[forward]
        yield Figure(f"ours, of a step of {forward}", share, "", most)


def _run(config: RunConfig, data: Rows, forward: Forward) -> Run:
    assert config.lora is not None
    base = _base(config)
    environment.seed(config.seed)
    built = adapters.attach(base, config.lora)
    if forward is not Forward.OURS:
        models.with_forward_of_peft(built)
    if forward is Forward.PEFT:  # the base stays in bf16, and no engine makes copies of the adapters
        config = config.model_copy(update={"precision": Precision.FP32})
    layout = mesh.build(config, RankInfo(0, 1, 0, torch.device("cpu")))
    state = TrainState(
        config, layout, engines.build(built, config, layout), data, sampler(config, len(data)),
        BatchSharding(config.batch.per_device, layout.data_size),
    )  # fmt: skip
    found, ends = Run([], []), [time.process_time()]

    def note(result: StepResult) -> None:
        ends.append(time.process_time())
        found.losses.append(result.loss)
        found.seconds.append(ends[-1] - ends[-2])

    loop.fit(state, 0, [note])
    return found


def _base(config: RunConfig) -> PreTrainedModel:
    """For fp32 the codes of bf16: those of another rounding would be another base."""
    if config.quantisation is None or config.precision is Precision.BF16:
        return models.loaded(Path(config.model), config)
    found = models.loaded(Path(config.model), config.model_copy(update={"precision": Precision.BF16}))
    for parameter in found.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in found.modules():
        if isinstance(module, QuantisedLinear):
            module.dtype = torch.float32
    return found


def _config(precision: Precision, **changes: Any) -> RunConfig:
    given = {"method": "lora", "batch": {"per_device": ROWS, "accumulation": 1}, "schedule__max_steps": STEPS}
    return models.run_config(
        smollm2.model(), smollm2.ROWS, Path("output"),
        lora=models.lora(rank=16, alpha=32.0), precision=precision, sequence_length=512,
        optimizer__learning_rate=RATE, **(given | changes),
    )  # fmt: skip


def _losses(name: str, run: Run) -> str:
    return f"{name}: " + " ".join(f"{loss:.3f}" for loss in run.losses)
