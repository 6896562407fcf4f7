"""A copy of what a checkpoint holds, in the memory of the CPU, so that training goes on while it is written.

Every rank copies only what it is going to write, and no rank has to ask another what that is: who writes a piece
follows from names, sizes and placements, which are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from . import rng
from .collectives import rank, world_size


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, which this rank writes."""

    name: str
    """Keys of the nested state, joined by dots."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    values: Tensor
    """Contiguous, on the CPU."""


@dataclass(frozen=True)
class RankSnapshot:
    """State of this rank after a step."""

    pieces: tuple[Piece, ...]
    random: Mapping[str, Tensor]
    """State of its random number generators."""
    extra: Mapping[str, Any]
    """JSON, the same on every rank."""


def take(state: Mapping[str, Any], extra: Mapping[str, Any], *, copy: bool = True) -> RankSnapshot:
    """Of `state`, a nested dict of tensors and DTensors. Every rank takes its part at the same step.

    copy: also of tensors that are in the memory of the CPU, as the next step changes them.
    """
    return RankSnapshot(tuple(_pieces(dict(_flat(state)), copy=copy)), rng.capture(), extra)


def size(state: Mapping[str, Any]) -> int:
    """Bytes of `state` on all ranks together: those of a checkpoint."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _flat(state))


def _flat(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            assert isinstance(value, Tensor), f"{prefix}{key}: the state of a checkpoint is tensors only"
            yield prefix + key, value


def _pieces(tensors: Mapping[str, Tensor], *, copy: bool) -> Iterator[Piece]:
    """Plain tensors are the same on every rank: each goes to the rank that has the least to write so far.

    Scalars do not count, so those beside shards are in one file: a resume of any rank needs them all.
    """
    bytes_of = [0] * world_size()
    for number, name in enumerate(sorted(tensors)):
        tensor = tensors[name].detach()
        if isinstance(tensor, DTensor):
            if _writes_shard(tensor, number):
                yield _shard(name, tensor, copy=copy)
            continue
        writer = bytes_of.index(min(bytes_of))
        bytes_of[writer] += tensor.nbytes if tensor.dim() else 0
        if writer == rank():
            yield Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), _on_cpu(tensor, copy=copy))


def _writes_shard(tensor: DTensor, number: int) -> bool:
    """Ranks that have the same shard take turns from tensor to tensor. An empty shard of a tensor is not written."""
    coordinate, sizes = tensor.device_mesh.get_coordinate(), tensor.device_mesh.shape
    assert coordinate is not None, "every rank is in the mesh of its state"
    replica, replicas = 0, 1
    for axis, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            replica, replicas = replica * sizes[axis] + coordinate[axis], replicas * sizes[axis]
    holds_something = tensor.to_local().numel() > 0 or tensor.numel() == 0
    return holds_something and number % replicas == replica


def _shard(name: str, tensor: DTensor, *, copy: bool) -> Piece:
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return Piece(name, tuple(tensor.shape), tuple(offsets), _on_cpu(tensor.to_local(), copy=copy))


def _on_cpu(tensor: Tensor, *, copy: bool) -> Tensor:
    return tensor.to("cpu", copy=copy, memory_format=torch.contiguous_format)
