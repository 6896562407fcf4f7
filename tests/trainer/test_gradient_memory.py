"""While gradients accumulate, a rank of a sharded engine holds its shard of them and no more."""

from __future__ import annotations

import pytest

from finetune_api.runtime.choices import Engine
from finetune_trainer.engines.fsdp2 import Fsdp2
from trainer.gradient_memory_work import Memory, WholeGradients, memory_of
from trainer.ranks import run_ranks, values

GROUPS = 6
"""Largest groups of parameters that may be in memory in addition: weights gathered ahead, buffers of the sums."""

pytestmark = pytest.mark.parametrize(
    ("world", "engine", "precision", "shards"),
    [
        pytest.param(4, Engine.FSDP2, "bf16", 4, id="fsdp2 on 4 ranks in bf16"),
        pytest.param(4, Engine.HSDP, "fp32", 2, id="hybrid on 2 x 2 ranks in fp32"),
    ],
)


def bound(memory: Memory, shards: int) -> float:
    return memory.whole / shards + GROUPS * memory.largest


def test_gradients_of_several_micro_batches_take_the_memory_of_a_shard(
    world: int, engine: Engine, precision: str, shards: int
) -> None:
    for memory in values(run_ranks(world, memory_of, Fsdp2, engine, precision)):
        assert memory.grown <= bound(memory, shards), memory
        assert memory.grown >= 0.9 * memory.whole / shards, f"{memory}: or this test measures nothing"


def test_gradients_that_stay_whole_between_micro_batches_are_found_out(
    world: int, engine: Engine, precision: str, shards: int
) -> None:
    for memory in values(run_ranks(world, memory_of, WholeGradients, engine, precision)):
        assert memory.grown > bound(memory, shards), memory
