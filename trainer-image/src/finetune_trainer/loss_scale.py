"""Dynamic loss scale (Micikevicius et al. 2018, Mixed Precision Training), for fp16.

Gradients below 6e-8 are zero in fp16. So the loss is multiplied before the backward pass, by as much as the gradients
allow: a step whose gradients overflow is skipped and halves the scale, and many steps without overflow double it.
"""

from __future__ import annotations

import torch
from torch import Tensor

INITIAL = 2.0**16
SMALLEST = 1.0
"""Gradients that overflow without a scale are not finite for another reason."""
STEADY_STEPS = 2000
"""Steps without overflow after which the scale is doubled. These numbers are those of torch's GradScaler."""


class LossScale:
    """Scale of the next step, and how many steps were skipped so far. The same on every rank."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {
            "scale": torch.tensor(INITIAL, dtype=torch.float64),
            "steady_steps": torch.tensor(0, dtype=torch.int64),
            "skipped_steps": torch.tensor(0, dtype=torch.int64),
        }
        """Scalars on the CPU, for a checkpoint to be loaded into them."""

    @property
    def scale(self) -> float:
        return float(self.state["scale"])

    @property
    def skipped_steps(self) -> int:
        return int(self.state["skipped_steps"])

    def update(self, *, overflow: bool) -> None:
        """Take note of a step."""
        scale, steady, skipped = self.state.values()
        steady += 1
        if overflow:
            skipped += 1
            scale.div_(2).clamp_(min=SMALLEST)
        elif steady == STEADY_STEPS:
            scale.mul_(2)
        else:
            return
        steady.zero_()
