"""FSDP2: weights, gradients and optimizer state are sharded over all ranks (torch's fully_shard).

A layer's weights are gathered while the layer computes. Everything outside the layers (embedding, final norm,
output head) is one group, so an output head tied to the embedding needs no special case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig

from ..collate import TokenBatch
from ..environment import RankInfo
from ..errors import ModelRefused
from .base import AdamwEngine, ComputeSettings


class Fsdp2(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, rank_info: RankInfo) -> None:
        mesh = init_device_mesh(rank_info.device.type, (config.mesh.data_parallel,), mesh_dim_names=("data",))
        shard(model, mesh, config.precision, rank_info)
        compute = ComputeSettings(rank_info.device, Precision.FP32, config.mesh.data_parallel)
        super().__init__(model, model, config.optimizer, compute)

    def evaluate(self, batch: TokenBatch) -> Tensor:
        total = super().evaluate(batch)
        cast("FSDPModule", self.model).reshard()  # without a backward pass the root's weights would stay gathered
        return total

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        cast("FSDPModule", self.model).set_requires_gradient_sync(last)
        yield


def shard(model: nn.Module, mesh: DeviceMesh, precision: Precision, rank_info: RankInfo) -> None:
    """Shard `model` in place over `mesh` and move it to its device: every rank gets its shard of rank 0's weights."""
    policy = MixedPrecisionPolicy()
    if precision is Precision.BF16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    full = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to(rank_info.device)  # buffers only: the shards are on the device already
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"FSDP2 did not shard {name}"
        _scatter_from_rank_0(parameter, full.pop(name), rank_info)


def _scatter_from_rank_0(shard: DTensor, full: Tensor, rank_info: RankInfo) -> None:
    """Fill `shard` from rank 0's `full` tensor, which is on the device temporarily."""
    device = rank_info.device
    source = full.to(device) if rank_info.rank == 0 else torch.empty_like(full, device=device)
    with torch.no_grad():
        shard.to_local().copy_(distribute_tensor(source, shard.device_mesh, shard.placements).to_local())


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers declares as not splittable: the decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise ModelRefused(f"{type(model).__name__} does not declare its layers (_no_split_modules); set engine ddp")
    return found
