"""The learning rate of a step: a pure function, so that a resumed run needs only the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune_api.runtime.run_config import Schedule


def factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Fraction of the peak learning rate for optimizer step `step` (from 0) of `total_steps`, in (0, 1].

    Warmup takes ceil(warmup_ratio * total_steps) steps and reaches the peak at the last of them. The decay spans
    the remaining steps and would reach zero one step after the last, so that no step has a learning rate of zero.
    """
    warmup = math.ceil(schedule.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / (total_steps - warmup)
    return _DECAYS[schedule.name](progress)


_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),  # Loshchilov and Hutter 2017, no restarts
}
