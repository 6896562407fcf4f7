"""The training loop. Everything besides the optimizer step itself is a hook (hooks.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from finetune_api.runtime.run_config import RunConfig

from . import schedule
from .collate import collate
from .engines import TrainingEngine
from .environment import RankInfo
from .errors import NonFinite
from .heartbeat import Heartbeat
from .rows import Rows
from .sampler import BatchSharding, Indices, Sampler

_MAX_LISTED = 20
"""Lines named in a message."""


@dataclass(frozen=True)
class TrainState:
    """What a training step works on. Only the content of the engine changes during the run."""

    config: RunConfig
    rank_info: RankInfo
    engine: TrainingEngine
    rows: Rows
    sampler: Sampler
    sharding: BatchSharding
    heartbeat: Heartbeat = field(default_factory=Heartbeat)


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step, passed to the hooks. The same on every rank."""

    step: int
    """Optimizer steps done, this one included."""
    loss: float
    """Mean NLL per target token of this step, in nats."""
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    tokens: int
    """Tokens without padding, over all ranks."""
    seconds: float


Hook = Callable[[StepResult], None]


def fit(train_state: TrainState, start: int, hooks: Sequence[Hook]) -> None:
    """Train from `start` completed steps to the end of the run."""
    for step in range(start, train_state.sampler.total_steps):
        result = train_step(train_state, step)
        train_state.heartbeat.done(result.step)
        for hook in hooks:
            hook(result)


def train_step(train_state: TrainState, step: int) -> StepResult:
    """Optimizer step `step`, counted from 0. Raises NonFinite before any weight is updated."""
    began = time.monotonic()
    indices = train_state.sampler.step_rows(step)
    targets = int(train_state.rows.target_counts[indices].sum())
    loss = _gradients(train_state, indices, targets)
    norm = train_state.engine.clip(train_state.config.optimizer.max_grad_norm)
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFinite(_non_finite(train_state.rows, indices, step + 1, loss, norm))
    learning_rate = learning_rate_at(train_state, step)
    train_state.engine.step(learning_rate)
    tokens = int(train_state.rows.lengths[indices].sum())
    return StepResult(step + 1, loss, norm, learning_rate, tokens, time.monotonic() - began)


def learning_rate_at(train_state: TrainState, step: int) -> float:
    peak = train_state.config.optimizer.learning_rate
    return peak * schedule.factor(train_state.config.schedule, step, train_state.sampler.total_steps)


def _gradients(train_state: TrainState, indices: Indices, targets: int) -> float:
    """Accumulate the gradients of the mean over all `targets` of the step; return that mean.

    Every rank knows all rows of the step, so it knows the number of targets before the first backward pass.
    """
    micro_batches = train_state.sharding.micro_batches(indices, train_state.rank_info.rank)
    total = torch.zeros((), dtype=torch.float64, device=train_state.rank_info.device)
    for number, micro_batch in enumerate(micro_batches, start=1):
        last = number == len(micro_batches)
        batch = collate(train_state.rows, micro_batch)
        train_state.heartbeat.advance()
        total += train_state.engine.accumulate(batch, 1 / targets, last=last)
        train_state.heartbeat.advance()
    dist.all_reduce(total)
    return float(total) / targets


def _non_finite(rows: Rows, indices: Indices, step: int, loss: float, norm: float) -> str:
    lines = sorted({int(line) for line in rows.lines[indices]})
    more = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return (
        f"step {step}: loss is {loss} and gradient norm is {norm}; the step trained on dataset lines "
        f"{', '.join(map(str, lines[:_MAX_LISTED]))}{more}; lower hyperparameters.learning_rate, increase the "
        "warmup, or check these lines"
    )
