"""The training loop. Everything that is not one optimizer step hangs on it as a hook (hooks.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from finetune_api.runtime.run_config import RunConfig

from . import schedule
from .batches import Indices, Layout, Order
from .collate import collate
from .engines import Engine
from .environment import Place
from .errors import NonFinite
from .rows import Rows

_SHOWN = 20
"""Lines named in a message."""


@dataclass(frozen=True)
class Run:
    """What training needs; none of it changes while it runs, but for what the engine holds."""

    config: RunConfig
    place: Place
    engine: Engine
    rows: Rows
    order: Order
    layout: Layout


@dataclass(frozen=True)
class Done:
    """One optimizer step, as hooks see it. The same on every rank."""

    step: int
    """Optimizer steps done, this one included."""
    loss: float
    """Mean NLL per target token of this step, in nats."""
    grad_norm: float
    """Global norm before clipping."""
    learning_rate: float
    tokens: int
    """Tokens that are not padding, over all ranks."""
    seconds: float


Hook = Callable[[Done], None]


def fit(run: Run, start: int, hooks: Sequence[Hook]) -> None:
    """Train from `start` steps done to the end of the run."""
    for step in range(start, run.order.total_steps):
        done = train_step(run, step)
        for hook in hooks:
            hook(done)


def train_step(run: Run, step: int) -> Done:
    """Optimizer step `step`, counted from 0. Raises NonFinite, before any weight is touched."""
    began = time.monotonic()
    indices = run.order.of_step(step)
    targets = int(run.rows.target_counts[indices].sum())
    loss = _gradients(run, indices, targets)
    norm = run.engine.clip(run.config.optimizer.max_grad_norm)
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFinite(_non_finite(run.rows, indices, step + 1, loss, norm))
    learning_rate = learning_rate_of(run, step)
    run.engine.step(learning_rate)
    tokens = int(run.rows.lengths[indices].sum())
    return Done(step + 1, loss, norm, learning_rate, tokens, time.monotonic() - began)


def learning_rate_of(run: Run, step: int) -> float:
    peak = run.config.optimizer.learning_rate
    return peak * schedule.factor(run.config.schedule, step, run.order.total_steps)


def _gradients(run: Run, indices: Indices, targets: int) -> float:
    """Accumulate the gradients of the mean over all `targets` of the step; return that mean.

    Every rank knows all rows of the step, so it knows the number of targets before the first backward pass.
    """
    mine = run.layout.micro_batches(indices, run.place.rank)
    total = torch.zeros((), dtype=torch.float64, device=run.place.device)
    for number, micro in enumerate(mine, start=1):
        last = number == len(mine)
        total += run.engine.accumulate(collate(run.rows, micro), 1 / targets, last=last)
    dist.all_reduce(total)
    return float(total) / targets


def _non_finite(rows: Rows, indices: Indices, step: int, loss: float, norm: float) -> str:
    lines = sorted({int(line) for line in rows.lines[indices]})
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return (
        f"step {step}: the loss is {loss} and the gradient norm is {norm}; the rows of this step are lines "
        f"{', '.join(map(str, lines[:_SHOWN]))}{more}; lower hyperparameters.learning_rate, lengthen the "
        "warmup, or look at these lines"
    )
