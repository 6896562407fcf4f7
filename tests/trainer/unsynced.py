"""Engines without gradient synchronisation, to prove that the parity tests detect it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.engines import TrainingEngine
from finetune_trainer.engines.fsdp2 import Fsdp2
from finetune_trainer.engines.replicated import Replicated
from finetune_trainer.mesh import RankMesh


def build(model: nn.Module, config: RunConfig, mesh: RankMesh) -> TrainingEngine:
    return (UnsyncedReplicated if config.engine is choices.Engine.DDP else UnsyncedFsdp2)(model, config, mesh)


class UnsyncedReplicated(Replicated):
    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()


class UnsyncedFsdp2(Fsdp2):
    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        super().__init__(model, config, mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_custom_reduce_scatter(_OwnPart())  # type: ignore[arg-type]  # of a private type


class _OwnPart:
    """In place of a reduce-scatter: the rank's part of its own gradients."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(input_tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)])
