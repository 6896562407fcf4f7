"""The training loop. Everything besides the optimizer step itself is a hook (hooks.py)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig

from . import batches, schedule
from .collate import TokenBatch
from .engines import TrainingEngine
from .errors import NonFinite
from .heartbeat import Heartbeat
from .loss_scale import SMALLEST
from .mesh import RankMesh
from .rows import Rows
from .sampler import BatchSharding, Indices, Sampler

_MAX_LISTED = 20
"""Lines named in a message."""
_P = "hyperparameters.parallelism"


@dataclass(frozen=True)
class TrainState:
    """What a training step works on. Only the content of the engine changes during the run."""

    config: RunConfig
    mesh: RankMesh
    engine: TrainingEngine
    rows: Rows
    sampler: Sampler
    sharding: BatchSharding
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    stop: Callable[[], bool] = lambda: False
    """Whether this rank was asked to stop."""


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
    stop: bool = False
    """Some rank was asked to stop."""
    loss_scale: float | None = None
    """None without one."""
    skipped_steps: int = 0
    """Steps that changed nothing so far, because their gradients overflowed with their loss scale."""


Hook = Callable[[StepResult], None]


def fit(train_state: TrainState, start: int, hooks: Sequence[Hook]) -> None:
    """Train from `start` completed steps to the end of the run."""
    steps = range(start, train_state.sampler.total_steps)
    with closing(micro_batches(train_state, steps)) as coming:
        for step in steps:
            result = train_step(train_state, step, coming)
            train_state.heartbeat.done(result.step)
            for hook in hooks:
                hook(result)


def micro_batches(train_state: TrainState, steps: Sequence[int]) -> Generator[TokenBatch, None, None]:
    """This rank's micro batches of `steps`, one step after the other."""
    sampler, sharding, mesh = train_state.sampler, train_state.sharding, train_state.mesh
    cut = (each for step in steps for each in sharding.micro_batches(sampler.step_rows(step), mesh.data_rank))
    return batches.collated(train_state.rows, cut, mesh.rank_info.device)


def train_step(train_state: TrainState, step: int, coming: Iterator[TokenBatch]) -> StepResult:
    """Optimizer step `step`, counted from 0, whose micro batches are the next of `coming`.

    Raises NonFinite with the weights as they were before the step.
    """
    began = time.monotonic()
    indices = train_state.sampler.step_rows(step)
    targets = int(train_state.rows.target_counts[indices].sum())
    count = len(train_state.sharding.micro_batches(indices, train_state.mesh.data_rank))
    learning_rate = learning_rate_at(train_state, step)
    outcome = train_state.engine.train(
        _watched(islice(coming, count), train_state.heartbeat),
        targets=targets,
        learning_rate=learning_rate,
        max_norm=train_state.config.optimizer.max_grad_norm,
        stop=train_state.stop,
    )
    loss = outcome.nll / targets
    if outcome.skipped and not ((outcome.loss_scale or 0) > SMALLEST and math.isfinite(loss)):
        what = f"step {step + 1}: loss is {loss} and gradient norm is {outcome.norm}"
        raise NonFinite(f"{what}; {_lines(train_state.rows, indices)}; {remedy(train_state.config, step)}")
    tokens = int(train_state.rows.lengths[indices].sum())
    seconds = time.monotonic() - began
    return StepResult(
        step + 1, loss, outcome.norm, learning_rate, tokens, seconds, outcome.stop,
        outcome.loss_scale, outcome.skipped_steps,
    )  # fmt: skip


def learning_rate_at(train_state: TrainState, step: int) -> float:
    peak = train_state.config.optimizer.learning_rate
    return peak * schedule.factor(train_state.config.schedule, step, train_state.sampler.total_steps)


def _watched(coming: Iterator[TokenBatch], heartbeat: Heartbeat) -> Iterator[TokenBatch]:
    """`coming`, with a heartbeat before and after the work on each."""
    for batch in coming:
        heartbeat.advance()
        yield batch
        heartbeat.advance()


def remedy(config: RunConfig, steps: int) -> str:
    """What to do about a number that is not finite after `steps` optimizer steps."""
    if config.precision is Precision.FP16:
        return f"{_P}.fp16 ends at 65,504: compute in bf16 ({_P}.bf16), or in fp32 ({_P}.bf16: false)"
    if steps == 0:
        return "nothing was trained before, so check the weights of job.model, and the rows"
    return "lower hyperparameters.learning_rate, increase the warmup, or check the rows"


def _lines(rows: Rows, indices: Indices) -> str:
    lines = sorted({int(line) for line in rows.lines[indices]})
    more = f" and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
    return f"the step trained on dataset lines {', '.join(map(str, lines[:_MAX_LISTED]))}{more}"
