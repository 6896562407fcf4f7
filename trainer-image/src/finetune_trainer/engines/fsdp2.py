"""Weights, gradients and optimizer state are sharded over all ranks (torch's fully_shard).

A layer's weights are gathered for as long as the layer computes. Everything outside the layers (embedding,
final norm, output head) is one group, so a head that shares its weight with the embedding needs no care.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig

from ..collate import Batch
from ..environment import Place
from ..errors import ModelRefused
from .base import AdamwEngine, Compute


class Fsdp2(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, place: Place) -> None:
        shard(model, config.precision, place)
        compute = Compute(place.device, Precision.FP32, place.world_size)
        super().__init__(model, model, config.optimizer, compute)

    def evaluate(self, batch: Batch) -> Tensor:
        total = super().evaluate(batch)
        cast("FSDPModule", self.model).reshard()  # without a backward pass the root's weights stay gathered
        return total

    @contextmanager
    def _exchange(self, last: bool) -> Iterator[None]:
        cast("FSDPModule", self.model).set_requires_gradient_sync(last)
        yield


def shard(model: nn.Module, precision: Precision, place: Place) -> None:
    """Shard `model` in place and move it to its device; every rank gets its part of rank 0's weights."""
    mesh = init_device_mesh(place.device.type, (place.world_size,), mesh_dim_names=("data",))
    policy = MixedPrecisionPolicy()
    if precision is Precision.BF16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    whole = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to(place.device)  # buffers; the shards are there already
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"FSDP2 left {name} whole"
        _take_over(parameter, whole.pop(name), place)


def _take_over(shard: DTensor, whole: Tensor, place: Place) -> None:
    """Fill `shard` from rank 0's `whole`, which is that of nobody else; the device holds it for a moment."""
    source = whole.to(place.device) if place.rank == 0 else torch.empty_like(whole, device=place.device)
    with torch.no_grad():
        shard.to_local().copy_(distribute_tensor(source, shard.device_mesh, shard.placements).to_local())


def layers(model: nn.Module) -> list[nn.Module]:
    """The blocks that transformers says must stay whole: the decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise ModelRefused(f"{type(model).__name__} does not say what its layers are; set engine ddp")
    return found
