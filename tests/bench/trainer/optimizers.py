"""Full finetuning with moments in eight bits beside fp32: losses, a step, and bytes a weight.

Times are the least processor time of several, which other load changes less than the clock's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.figures import Figure
from finetune_api.runtime.choices import OptimizerName
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
"""Largest distance to a loss with fp32 moments, in nats."""
UPDATES = 5


def figures() -> Iterator[Figure]:
    losses = {}
    for name in OptimizerName:
        config = smollm2.config(smollm2.model(), Path("output"), STEPS, accumulation=1, optimizer__name=name)
        engine, losses[name], step = _trained(config)
        print(f"{name}: " + " ".join(f"{loss:.3f}" for loss in losses[name]), flush=True)
        yield Figure(f"{name}: a step", step, "s")
        yield Figure(f"{name}: of that, the update of the weights", _update(engine), "s")
        state = engine.state()
        moments = sum(t.nbytes for kind, each in state.items() if kind != "parameters" for t in each.values())
        numbers = sum(weight.numel() for weight in state["parameters"].values())
        yield Figure(f"{name}: moments in a checkpoint, of a weight", moments / numbers, "bytes")
        if name is OptimizerName.ADAMW_8BIT:
            held = sum(m.codes.nbytes + m.scales.nbytes for m in engine._optimizer._moments.values())
            large = sum(state["parameters"][each].numel() for each in state["exp_avg_scales"])
            yield Figure(f"{name}: codes and scales in memory, of a large weight", held / large, "bytes", most=2.1)
    far = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    yield Figure(f"furthest loss of {STEPS} from fp32 moments'", far, "nats", most=NEAR)


def _trained(config: RunConfig) -> tuple[Any, list[float], float]:
    """The engine, the losses, and the processor time of a step in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        preparation.prepare(config, 0, Path(folder), lambda _: None)
        data = Rows.load(Path(folder) / TRAIN)
    layout = mesh.build(config, RankInfo(0, 1, 0, torch.device("cpu")))
    environment.seed(config.seed)
    engine: Any = engines.build(models.loaded(Path(config.model), config), config, layout)
    sharding = BatchSharding(config.batch.per_device, layout.data_size)
    state = TrainState(config, layout, engine, data, sampler(config, len(data)), sharding)
    losses: list[float] = []
    times = [time.process_time()]
    loop.fit(state, 0, [lambda done: losses.append(done.loss), lambda _: times.append(time.process_time())])
    return engine, losses, min(end - begin for begin, end in pairwise(times))


def _update(engine: Any) -> float:
    """Processor time of the optimizer in seconds."""
    local = engine._weights.local
    gradients = {name: torch.randn_like(weight) * 1e-3 for name, weight in local.items()}
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    seconds = []
    for _ in range(UPDATES):
        began = time.process_time()
        engine._optimizer.step(local, gradients, 1e-5, one, none)
        seconds.append(time.process_time() - began)
    return min(seconds)
