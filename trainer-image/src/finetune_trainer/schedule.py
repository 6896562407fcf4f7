"""The learning rate of a step: a pure function, so that a resumed run needs nothing but the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune_api.runtime.run_config import Schedule


def factor(schedule: Schedule, step: int, total_steps: int) -> float:
    """Share of the peak learning rate that optimizer step `step` (from 0) of `total_steps` uses, in (0, 1].

    Warmup takes ceil(warmup_ratio * total_steps) steps and reaches the peak with the last of them. The decay
    spans the others and would reach zero one step after the last, so that no step is spent at zero.
    """
    warmup = math.ceil(schedule.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    gone = (step - warmup) / (total_steps - warmup)
    return _DECAYS[schedule.name](gone)


_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda gone: 1.0,
    "linear": lambda gone: 1.0 - gone,
    "cosine": lambda gone: 0.5 * (1.0 + math.cos(math.pi * gone)),  # Loshchilov and Hutter 2017, no restarts
}
