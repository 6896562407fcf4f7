"""Engines without gradient synchronisation, to prove that the parity tests detect it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from finetune_api.runtime import choices
from finetune_api.runtime.run_config import RunConfig
from finetune_api.runtime.zero import STAGES
from finetune_trainer import engines
from finetune_trainer.engines import TrainingEngine
from finetune_trainer.engines.fsdp2 import Fsdp2
from finetune_trainer.engines.replicated import Replicated
from finetune_trainer.mesh import RankMesh


def build(model: nn.Module, config: RunConfig, mesh: RankMesh) -> TrainingEngine:
    if config.engine in STAGES:
        return _unsynced_zero(engines.build(model, config, mesh))
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


def _unsynced_zero(engine: Any) -> TrainingEngine:
    """Stage 1 reduces its gradients before the update, the others in the backward pass."""
    engine._loss.backward = _without_reduction(engine._loss.backward)
    engine._engine.allreduce_gradients = _without_reduction(engine._engine.allreduce_gradients)
    return cast("TrainingEngine", engine)


def _without_reduction(work: Callable[..., Any]) -> Callable[..., Any]:
    def done(*arguments: Any, **settings: Any) -> Any:
        from deepspeed import comm  # noqa: PLC0415 - an engine has imported it

        with patch.multiple(comm, all_reduce=_nothing, reduce=_nothing, reduce_scatter_fn=_nothing):
            return work(*arguments, **settings)

    return done


def _nothing(*_: Any, **__: Any) -> None:
    """A reduction that leaves to each rank its own numbers."""


class _OwnPart:
    """In place of a reduce-scatter: the rank's part of its own gradients."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        output_tensor.copy_(input_tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)])
