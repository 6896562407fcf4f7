"""Training engines own gradients and optimizer state: one engine per file, one protocol for the loop.

The entry point is `build`, called after the weights are loaded; from then on the engine owns the model.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig

from ..environment import RankInfo
from .base import TrainingEngine
from .ddp import Ddp
from .fsdp2 import Fsdp2
from .single import Single

__all__ = ["TrainingEngine", "build"]

_ENGINES: dict[choices.Engine, Callable[[nn.Module, RunConfig, RankInfo], TrainingEngine]] = {
    choices.Engine.SINGLE: Single,
    choices.Engine.DDP: Ddp,
    choices.Engine.FSDP2: Fsdp2,
}


def build(model: nn.Module, config: RunConfig, rank_info: RankInfo) -> TrainingEngine:
    """The engine named in `config`, around `model` (on the CPU; the engine moves it to its device).

    Every rank gets rank 0's weights; the models of the other ranks only need the same shapes. Collective.
    """
    return _ENGINES[config.engine](model, config, rank_info)
