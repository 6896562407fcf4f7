"""FSDP2: weights, gradients and optimizer state are sharded over ranks (torch's fully_shard).

A layer's weights are gathered while the layer computes, and its gradients are reduced to shards after every micro
batch, so no rank ever holds all of them. Everything outside the layers (embedding, final norm, output head) is one
group, so an output head tied to the embedding needs no special case. Hybrid sharding shards over the ranks of a node;
only the sum over nodes waits for the last micro batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_api.runtime.run_config import RunConfig

from .. import rounding
from ..collate import TokenBatch
from ..errors import ModelRefused
from ..master import MasterWeights, computes_apart, local, to_compute_format
from ..mesh import DATA, RankMesh
from ..optim import trained
from .base import AdamwEngine


class Fsdp2(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        separate = shard(model, config, mesh)
        weights = MasterWeights(trained(model), separate, rounding.of(config, mesh.rank_info.device), config.weights)
        super().__init__(model, config, mesh, weights)
        self._root = cast("FSDPModule", model)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # gradients are of a mean already: their sum is wanted
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                module.set_reduce_scatter_unused_params(True)  # which another rank may have used

    def evaluate(self, batch: TokenBatch) -> Tensor:
        total = super().evaluate(batch)
        self._root.reshard()  # without a backward pass the root's weights would stay gathered
        return total

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        self._root.set_requires_all_reduce(last)
        yield


def shard(model: nn.Module, config: RunConfig, mesh: RankMesh) -> dict[str, Tensor]:
    """Shard `model` in place and move it to its device: every rank gets its shard of rank 0's weights.

    Returns this rank's fp32 part of the parameters that got the compute format.
    """
    axes = mesh.devices[tuple(axis for axis in DATA if mesh.size(axis) > 1) or ("shard",)]
    full = {name: parameter.detach() for name, parameter in model.named_parameters()}
    apart = set(computes_apart(model, config.precision))
    for name, parameter in trained(model).items():
        if name in apart:
            to_compute_format(parameter, config.precision)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32) if apart else MixedPrecisionPolicy()
    for layer in [*_kept_in_fp32(model, apart), *layers(model)]:
        fully_shard(layer, mesh=axes, mp_policy=policy)
    fully_shard(model, mesh=axes, mp_policy=policy)
    model.to(mesh.rank_info.device)  # buffers only: the shards are on the device already
    separate = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"FSDP2 did not shard {name}"
        part = _part_of_rank_0(full.pop(name), parameter, mesh)
        if name in apart:
            separate[name] = part.clone()
        else:
            local(parameter.detach()).copy_(part)
    return separate


def _kept_in_fp32(model: nn.Module, apart: set[str]) -> list[nn.Module]:
    """Modules with trained parameters in fp32 in a model that computes in another format.

    FSDP2 wants one format in a group, so they get groups of their own.
    """
    kept = {p: name for name, p in trained(model).items() if apart and name not in apart}
    found = [module for module in model.modules() if any(p in kept for p in module.parameters(recurse=False))]
    others = [p for module in found for p in module.parameters() if p.requires_grad and p not in kept]
    if others:
        raise ModelRefused(
            f"{', '.join(kept.values())}: the architecture keeps these weights in fp32, and FSDP2 cannot shard them "
            "with others in the same module; set engine ddp, or compute in fp32 (hyperparameters.parallelism.bf16)"
        )
    return found


def _part_of_rank_0(full: Tensor, like: DTensor, mesh: RankMesh) -> Tensor:
    """This rank's shard of rank 0's `full` tensor, which is on the device temporarily."""
    device = mesh.rank_info.device
    source = full.to(device) if mesh.rank_info.rank == 0 else torch.empty_like(full, device=device)
    return distribute_tensor(source, like.device_mesh, like.placements).to_local()


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers declares as not splittable: the decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise ModelRefused(f"{type(model).__name__} does not declare its layers (_no_split_modules); set engine ddp")
    return found
