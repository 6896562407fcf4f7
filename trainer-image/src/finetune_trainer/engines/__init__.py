"""Who owns gradients and optimizer state: one engine per file, one protocol for the loop.

`build` is the way in. An engine is made after the weights are loaded; from then on it owns the model.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig

from ..environment import Place
from .base import Engine
from .ddp import Ddp
from .fsdp2 import Fsdp2
from .single import Single

__all__ = ["Engine", "build"]

_ENGINES: dict[choices.Engine, Callable[[nn.Module, RunConfig, Place], Engine]] = {
    choices.Engine.SINGLE: Single,
    choices.Engine.DDP: Ddp,
    choices.Engine.FSDP2: Fsdp2,
}


def build(model: nn.Module, config: RunConfig, place: Place) -> Engine:
    """The engine that `config` names, around `model` (on the CPU; the engine moves it to its device).

    Rank 0's weights count: what the other ranks bring is a model of the same shape. Collective.
    """
    return _ENGINES[config.engine](model, config, place)
