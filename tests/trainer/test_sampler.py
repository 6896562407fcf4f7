"""Which rows are in a micro batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from finetune_trainer.sampler import BatchSharding, Indices, Sampler


def sampler(**changes: object) -> Sampler:
    fine = {"rows": 10, "rows_per_step": 4, "epochs": 2, "max_steps": None, "shuffle": True, "seed": 7}
    return Sampler(**{**fine, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        pytest.param({}, 6, id="the last step of an epoch takes what is left"),
        pytest.param({"rows": 8}, 4, id="no step without rows follows a full one"),
        pytest.param({"rows": 3}, 2, id="fewer rows than a step has make one step an epoch"),
        pytest.param({"max_steps": 5}, 5, id="max_steps ends the run in the middle of an epoch"),
        pytest.param({"max_steps": 50}, 6, id="max_steps beyond the epochs changes nothing"),
    ],
)
def test_total_steps(changes: dict[str, object], steps: int) -> None:
    assert sampler(**changes).total_steps == steps


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_has_every_row_once(shuffle: bool) -> None:
    one = sampler(shuffle=shuffle)
    for epoch in range(one.epochs):
        steps = range(epoch * one.steps_per_epoch, (epoch + 1) * one.steps_per_epoch)
        assert sorted(np.concatenate([one.step_rows(step) for step in steps])) == list(range(10))


def test_rows_keep_the_order_of_the_file_without_shuffling() -> None:
    assert sampler(shuffle=False).step_rows(1).tolist() == [4, 5, 6, 7]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Each epoch has one step here."""
    runs = {seed: sampler(rows=50, rows_per_step=50, seed=seed) for seed in (7, 8)}
    orders = [runs[seed].step_rows(epoch).tolist() for seed, epoch in ((7, 0), (7, 1), (8, 0))]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_a_step_is_deterministic() -> None:
    assert sampler().step_rows(4).tolist() == sampler().step_rows(4).tolist()


@pytest.mark.parametrize("count", [8, 7, 5, 3, 1], ids=lambda count: f"{count} of 8 rows")
@pytest.mark.parametrize(("per_device", "ranks"), [(8, 1), (1, 1), (2, 1), (2, 2), (1, 4), (1, 8)])
def test_ranks_share_out_a_step(count: int, per_device: int, ranks: int) -> None:
    rows = np.arange(100, 100 + count)
    shares = [BatchSharding(per_device, ranks).micro_batches(rows, rank) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "a rank runs more micro batches than another"
    assert all(len(micro) <= per_device for share in shares for micro in share)
    in_turn = np.concatenate([micro for micros in zip(*shares, strict=True) for micro in micros])
    assert in_turn.tolist() == rows.tolist(), "the rows of a micro step are not consecutive"


def test_a_step_has_no_micro_batch_that_is_empty_on_every_rank() -> None:
    rows: Indices = np.arange(3)
    assert [m.tolist() for m in BatchSharding(1, 2).micro_batches(rows, 0)] == [[0], [2]]
    assert [m.tolist() for m in BatchSharding(1, 2).micro_batches(rows, 1)] == [[1], []]
