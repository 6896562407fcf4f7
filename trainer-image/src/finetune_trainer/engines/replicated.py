"""Data parallel: every rank holds the whole model. With one rank there is nothing to synchronise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finetune_api.runtime.run_config import RunConfig

from .. import placeholders, rounding
from ..master import MasterWeights, computes_apart, to_compute_format
from ..mesh import RankMesh
from ..optim import trained
from .base import AdamwEngine
from .buckets import GradientBuckets


class Replicated(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        placeholders.fill(model)
        model.to(mesh.rank_info.device)
        replicas = mesh.size("replicate")
        if replicas > 1:
            _broadcast_from_rank_0(model)
        parameters = trained(model)
        separate = {name: parameters[name].detach() for name in computes_apart(model, config.precision)}
        for name in separate:
            to_compute_format(parameters[name], config.precision)
        weights = MasterWeights(parameters, separate, rounding.of(config, mesh.rank_info.device), config.weights)
        self._buckets = GradientBuckets(list(parameters.values())) if replicas > 1 else None
        super().__init__(model, config, mesh, weights)

    @staticmethod
    def part(weight: Tensor, mesh: RankMesh) -> Tensor:
        """All of it, on the device, and no longer in the file, which may change while the run lasts."""
        return weight.to(mesh.rank_info.device, copy=True)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return self._buckets.summing() if last and self._buckets else nullcontext()


def _broadcast_from_rank_0(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.data, src=0)
