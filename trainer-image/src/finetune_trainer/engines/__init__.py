"""Training engines own gradients and optimizer state: one engine per file, one protocol for the loop.

The entry point is `build`, called after the weights are loaded; from then on the engine owns the model.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig

from ..errors import ConfigRefused
from ..mesh import RankMesh
from ..placeholders import Keep
from .base import StepOutcome, TrainingEngine
from .fsdp2 import Fsdp2
from .replicated import Replicated
from .zero import Zero, Zero3, keeper

__all__ = ["StepOutcome", "TrainingEngine", "build", "kept"]

_ENGINES: dict[choices.Engine, type[Replicated] | type[Fsdp2] | type[Zero]] = {
    choices.Engine.SINGLE: Replicated,
    choices.Engine.DDP: Replicated,
    choices.Engine.FSDP2: Fsdp2,
    choices.Engine.HSDP: Fsdp2,
    choices.Engine.ZERO1: Zero,
    choices.Engine.ZERO2: Zero,
    choices.Engine.ZERO3: Zero3,
}


def kept(config: RunConfig, mesh: RankMesh) -> Keep:
    """What this rank keeps of a weight when the model is loaded."""
    keeps = keeper(config, mesh) if config.engine is choices.Engine.ZERO3 else mesh
    return partial(_ENGINES[config.engine].part, mesh=keeps)


def build(model: nn.Module, config: RunConfig, mesh: RankMesh) -> TrainingEngine:
    """The engine named in `config`, around `model` (on the CPU; the engine moves it to its device).

    Placeholders get the parts that this rank has kept; other weights those of rank 0. Collective.
    Raises ConfigRefused if a rank is not a replica or a shard: no engine has tensor or pipeline parallelism.
    """
    ranks = mesh.rank_info.world_size
    if mesh.data_size != ranks:
        sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.sizes.items())
        raise ConfigRefused(
            f"mesh: {sizes} does not spread the rows over all {ranks} ranks; set data_parallel {ranks}, and "
            "tensor_parallel and pipeline_parallel 1"
        )
    return _ENGINES[config.engine](model, config, mesh)
