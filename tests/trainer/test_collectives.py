"""Collective failures: the same error on every rank, with the number of the failed rank."""

from __future__ import annotations

import pytest

from finetune_trainer.errors import DataRefused, OutputRefused, RunError
from trainer import collectives_work as work
from trainer.ranks import run_ranks, values


@pytest.mark.parametrize("world", [1, 3])
def test_every_rank_gets_all_results(world: int) -> None:
    squares = [number**2 for number in range(world)]
    assert values(run_ranks(world, work.squares)) == [squares] * world
    assert values(run_ranks(world, work.who_is_first)) == [0] * world


@pytest.mark.parametrize(
    ("world", "victims", "error", "message"),
    [
        pytest.param(3, (1,), OutputRefused, "rank 1: failed on 1", id="one fails"),
        pytest.param(3, (1, 2), OutputRefused, "rank 1: failed on 1", id="two fail: the error of the lowest rank"),
        pytest.param(1, (0,), DataRefused, "failed on 0", id="a single rank has no number"),
    ],
)
def test_every_rank_raises_what_one_raised(
    world: int, victims: tuple[int, ...], error: type[RunError], message: str
) -> None:
    for ended in run_ranks(world, work.refuse_on, victims):
        assert (type(ended.error), str(ended.error)) == (error, message)


def test_what_the_first_rank_raises_reaches_all() -> None:
    for ended in run_ranks(2, work.first_refuses):
        assert (type(ended.error), str(ended.error)) == (DataRefused, "failed on 0")
