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
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_api.runtime.run_config import RunConfig

from .. import placeholders, rounding
from ..collate import TokenBatch
from ..errors import ModelRefused
from ..master import MasterWeights, computes_apart, to_compute_format
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

    @staticmethod
    def part(weight: Tensor, mesh: RankMesh) -> Tensor:
        """This rank's shard, on its device."""
        length = -(-len(weight) // mesh.size("shard"))
        start = mesh.coordinate("shard") * length
        return weight[start : start + length].to(mesh.rank_info.device, copy=True)

    def evaluate(self, batch: TokenBatch) -> Tensor:
        total = super().evaluate(batch)
        self._root.reshard()  # without a backward pass the root's weights would stay gathered
        return total

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        self._root.set_requires_all_reduce(last)
        yield


def shard(model: nn.Module, config: RunConfig, mesh: RankMesh) -> dict[str, Tensor]:
    """Shard `model` in place, and put this rank's shards on its device.

    Shards of placeholders are loaded already; those of other weights come from rank 0.
    Returns this rank's fp32 part of the parameters that got the compute format.
    """
    axes = _axes(mesh)
    parts = {name: placeholders.take(parameter) for name, parameter in model.named_parameters()}
    whole = {name: parameter.detach() for name, parameter in model.named_parameters() if parts[name] is None}
    apart = set(computes_apart(model, config.precision))
    placeholders.substitute(model, {n: _without_values(p, config, n in apart) for n, p in model.named_parameters()})
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32) if apart else MixedPrecisionPolicy()
    for layer in [*_kept_in_fp32(model, apart), *layers(model)]:
        fully_shard(layer, mesh=axes, mp_policy=policy)
    fully_shard(model, mesh=axes, mp_policy=policy)
    separate, placed = {}, {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), f"FSDP2 did not shard {name}"
        part = parts.pop(name)
        if part is None:
            part = _part_of_rank_0(whole.pop(name), parameter, mesh)
        if name in apart:
            separate[name] = part
            part = torch.empty_like(part, dtype=parameter.dtype)
        placed[name] = _sharded(part, parameter)
    placeholders.substitute(model, placed)
    model.to(mesh.rank_info.device)  # buffers; and FSDP2 looks for its parameters again
    return separate


def _axes(mesh: RankMesh) -> DeviceMesh:
    return mesh.devices[tuple(axis for axis in DATA if mesh.size(axis) > 1) or ("shard",)]


def _without_values(parameter: nn.Parameter, config: RunConfig, apart: bool) -> nn.Parameter:
    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")  # a placeholder is not contiguous
    found = nn.Parameter(empty, parameter.requires_grad)
    if apart:
        to_compute_format(found, config.precision)
    return found


def _sharded(part: Tensor, like: DTensor) -> nn.Parameter:
    assert part.shape == like.to_local().shape, f"{tuple(part.shape)} is not the shard of {like.placements}"
    tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return nn.Parameter(tensor, like.requires_grad)


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


def _part_of_rank_0(whole: Tensor, like: DTensor, mesh: RankMesh) -> Tensor:
    """This rank's shard of rank 0's `whole` tensor, which is on the device temporarily."""
    device = mesh.rank_info.device
    source = whole.to(device) if mesh.rank_info.rank == 0 else torch.empty_like(whole, device=device)
    return distribute_tensor(source, like.device_mesh, like.placements).to_local().clone()


def layers(model: nn.Module) -> list[nn.Module]:
    """The modules that transformers declares as not splittable: the decoder layers."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise ModelRefused(f"{type(model).__name__} does not declare its layers (_no_split_modules); set engine ddp")
    return found
