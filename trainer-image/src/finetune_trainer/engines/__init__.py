"""Training engines own gradients and optimizer state: one engine per file, one protocol for the loop.

The entry point is `build`, called after the weights are loaded; from then on the engine owns the model.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig

from ..environment import RankInfo
from ..errors import ConfigRefused
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
    Raises ConfigRefused if a rank is not a replica of its own: no engine has tensor or pipeline parallelism.
    """
    mesh, ranks = config.mesh, rank_info.world_size
    if (mesh.data_parallel, mesh.tensor_parallel, mesh.pipeline_parallel) != (ranks, 1, 1):
        raise ConfigRefused(
            f"mesh: data_parallel is {mesh.data_parallel}, tensor_parallel {mesh.tensor_parallel} and "
            f"pipeline_parallel {mesh.pipeline_parallel}, but each of the {ranks} ranks is one replica; "
            f"set data_parallel {ranks} and the others 1"
        )
    return _ENGINES[config.engine](model, config, rank_info)
