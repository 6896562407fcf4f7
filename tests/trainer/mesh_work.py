"""What ranks do in the tests of the mesh."""

from __future__ import annotations

import torch

from finetune_trainer.collectives import rank, world_size
from finetune_trainer.environment import RankInfo
from finetune_trainer.mesh import AXES, RankMesh


def sum_of_ranks(sizes: dict[str, int]) -> float:
    """The sum of the numbers of the ranks that this one sums with."""
    mesh = RankMesh(
        RankInfo(rank(), world_size(), 0, torch.device("cpu")), {axis: sizes.get(axis, 1) for axis in AXES}
    )
    total = torch.tensor(float(rank()))
    mesh.sum_over_data(total)
    return float(total)
