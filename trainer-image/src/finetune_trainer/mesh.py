"""Where this rank stands: its coordinates, and the process groups of the axes over which a run is spread.

Ranks are numbered with the last axis fastest, so that ranks that exchange the most are neighbours on a node:

    pipeline   the layers, in stages
    replicate  copies of the weights, whose gradients are summed
    shard      weights, gradients and optimizer state in parts (FSDP, ZeRO)
    context    the tokens of a sequence
    tensor     the matrices of a layer

Rows are spread over replicate x shard, the data axes. An axis of size 1 has no group and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from finetune_api.runtime.choices import Engine
from finetune_api.runtime.run_config import RunConfig

from .environment import RankInfo

Axis = Literal["pipeline", "replicate", "shard", "context", "tensor"]
AXES: tuple[Axis, ...] = ("pipeline", "replicate", "shard", "context", "tensor")
DATA: tuple[Axis, ...] = ("replicate", "shard")


@dataclass(frozen=True)
class RankMesh:
    """The position of `rank_info` among all ranks. Its groups are made on first use, which is collective."""

    rank_info: RankInfo
    sizes: Mapping[Axis, int]

    def size(self, *axes: Axis) -> int:
        return prod(self.sizes[axis] for axis in axes)

    def coordinate(self, axis: Axis) -> int:
        inner = prod(self.sizes[other] for other in AXES[AXES.index(axis) + 1 :])
        return self.rank_info.rank // inner % self.sizes[axis]

    @property
    def data_size(self) -> int:
        """Ranks that train on different rows."""
        return self.size(*DATA)

    @property
    def data_rank(self) -> int:
        """Index of this rank among them."""
        return self.coordinate("replicate") * self.size("shard") + self.coordinate("shard")

    @cached_property
    def devices(self) -> DeviceMesh:
        """The axes larger than 1; `shard` of size 1 if there is none."""
        axes = [axis for axis in AXES if self.sizes[axis] > 1] or ["shard"]
        sizes = tuple(self.sizes[axis] for axis in axes)
        return init_device_mesh(self.rank_info.device.type, sizes, mesh_dim_names=tuple(axes))

    @cached_property
    def on_host(self) -> RankMesh:
        """The same, of tensors in the memory of the CPU."""
        if self.rank_info.device.type == "cpu":
            return self
        return replace(self, rank_info=replace(self.rank_info, device=torch.device("cpu")))

    def sum_over_data(self, tensor: Tensor) -> None:
        """Sum `tensor` in place over the data axes."""
        if self.data_size > 1:
            dist.all_reduce(tensor, group=self._data_group)

    @cached_property
    def _data_group(self) -> dist.ProcessGroup | None:
        """None: all ranks."""
        if self.data_size == self.rank_info.world_size:
            return None
        axes = tuple(axis for axis in DATA if self.sizes[axis] > 1)
        part = self.devices[axes]
        return (part if len(axes) == 1 else part._flatten("data")).get_group()  # noqa: SLF001 - torch has no other way


def build(config: RunConfig, rank_info: RankInfo) -> RankMesh:
    """The mesh of the run: hybrid sharding shards inside a node and replicates across nodes."""
    mesh = config.mesh
    everywhere = (Engine.FSDP2, Engine.ZERO1, Engine.ZERO2, Engine.ZERO3)
    shards = dict.fromkeys(everywhere, mesh.data_parallel) | {Engine.HSDP: mesh.processes_per_node}
    shard = shards.get(config.engine, 1)
    return RankMesh(
        rank_info,
        {
            "pipeline": mesh.pipeline_parallel,
            "replicate": mesh.data_parallel // shard,
            "shard": shard,
            "context": 1,
            "tensor": mesh.tensor_parallel,
        },
    )
