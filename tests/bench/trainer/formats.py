"""Full finetuning: losses in bf16 against fp32, by the rounding of the weights, and what their cast costs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.figures import Figure
from finetune_api.runtime.choices import Precision, Rounding
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import engines, environment, loop, mesh, preparation
from finetune_trainer.environment import RankInfo
from finetune_trainer.handoff import TRAIN
from finetune_trainer.loop import TrainState
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.trainer import sampler
from trainer import models

from . import smollm2

STEPS = 12
NEAR = 0.02
"""Largest distance to a loss of fp32, in nats."""
CASTS = 5


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        preparation.prepare(_config(), 0, Path(folder), print)
        data = Rows.load(Path(folder) / TRAIN)
        exact, _, _ = _run(_config(precision=Precision.FP32), data)
        print(_losses("fp32", exact), flush=True)
        for rounding, most in ((Rounding.STOCHASTIC, NEAR), (Rounding.NEAREST, None)):
            losses, step, cast = _run(_config(rounding=rounding), data)
            print(_losses(f"bf16, {rounding}", losses), flush=True)
            far = max(abs(a - b) for a, b in zip(exact, losses, strict=True))
            yield Figure(f"bf16, {rounding}: furthest loss of {STEPS} from fp32's", far, "nats", most)
            yield Figure(f"bf16, {rounding}: the cast, of a step on this CPU", 100 * cast / step, "%")


def _run(config: RunConfig, data: Rows) -> tuple[list[float], float, float]:
    """The losses, and the seconds of a step and of a cast of all weights."""
    layout = mesh.build(config, RankInfo(0, 1, 0, torch.device("cpu")))
    environment.seed(config.seed)
    engine: Any = engines.build(models.loaded(Path(config.model), config), config, layout)
    losses: list[float] = []
    seconds: list[float] = []
    state = TrainState(
        config, layout, engine, data, sampler(config, len(data)),
        BatchSharding(config.batch.per_device, layout.data_size),
    )  # fmt: skip
    loop.fit(state, 0, [lambda done: losses.append(done.loss), lambda done: seconds.append(done.seconds)])
    casts = []
    for _ in range(CASTS):
        began = time.monotonic()
        engine._weights.publish(STEPS)
        casts.append(time.monotonic() - began)
    return losses, statistics.median(seconds), statistics.median(casts)


def _config(**changes: Any) -> RunConfig:
    return smollm2.config(smollm2.model(), Path("output"), STEPS, accumulation=1, **changes)


def _losses(name: str, losses: list[float]) -> str:
    return f"{name}: " + " ".join(f"{loss:.3f}" for loss in losses)
