"""Where each rank stands, and which ranks sum together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer import mesh
from finetune_trainer.environment import RankInfo
from finetune_trainer.mesh import AXES, RankMesh
from trainer import mesh_work as work
from trainer import models
from trainer.ranks import run_ranks, values


def placed(rank: int, world: int, **sizes: int) -> RankMesh:
    return RankMesh(RankInfo(rank, world, 0, torch.device("cpu")), {axis: sizes.get(axis, 1) for axis in AXES})


def test_the_last_axis_changes_fastest() -> None:
    ranks = [placed(rank, 8, pipeline=2, shard=2, tensor=2) for rank in range(8)]
    assert [(m.coordinate("pipeline"), m.coordinate("shard"), m.coordinate("tensor")) for m in ranks] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1),
    ]  # fmt: skip


def test_on_its_host_a_rank_of_a_gpu_stands_where_it_stood() -> None:
    here = placed(3, 4, shard=4)
    gpu = RankMesh(RankInfo(3, 4, 1, torch.device("cuda", 1)), here.sizes)
    assert gpu.on_host == RankMesh(RankInfo(3, 4, 1, torch.device("cpu")), here.sizes)
    assert gpu.on_host is gpu.on_host, "its groups are made once"
    assert here.on_host is here


def test_ranks_of_one_replica_have_the_same_rows() -> None:
    assert [placed(rank, 8, replicate=2, shard=2, tensor=2).data_rank for rank in range(8)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("engine", "nodes", "each", "replicate", "shard"),
    [
        pytest.param("single", 1, 1, 1, 1, id="one process"),
        pytest.param("ddp", 2, 2, 4, 1, id="DDP replicates"),
        pytest.param("fsdp2", 2, 2, 1, 4, id="FSDP2 shards over all"),
        pytest.param("hsdp", 2, 4, 2, 4, id="hybrid sharding shards in a node and replicates over nodes"),
    ],
)
def test_axes_of_an_engine(engine: str, nodes: int, each: int, replicate: int, shard: int) -> None:
    changes: dict[str, Any] = {
        "engine": engine, "mesh__nodes": nodes, "mesh__processes_per_node": each, "mesh__data_parallel": nodes * each,
    }  # fmt: skip
    config = models.run_config(Path("model"), Path("data"), Path("out"), **changes)
    found = mesh.build(config, RankInfo(0, nodes * each, 0, torch.device("cpu")))
    assert (found.size("replicate"), found.size("shard"), found.data_size) == (replicate, shard, nodes * each)


@pytest.mark.parametrize(
    ("sizes", "sums"),
    [
        pytest.param(
            {"replicate": 2, "shard": 2}, [6.0, 6.0, 6.0, 6.0], id="over all where all have rows of their own"
        ),
        pytest.param({"shard": 2, "tensor": 2}, [2.0, 4.0, 2.0, 4.0], id="not over ranks that have the same rows"),
        pytest.param({"pipeline": 2, "replicate": 2}, [1.0, 1.0, 5.0, 5.0], id="not over stages"),
    ],
)
def test_sums_over_the_data_axes(sizes: dict[str, int], sums: list[float]) -> None:
    assert values(run_ranks(4, work.sum_of_ranks, sizes)) == sums
