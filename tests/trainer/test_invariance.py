"""Cutting a step into micro batches is a matter of memory: it changes neither the loss nor a gradient."""

from __future__ import annotations

import pytest

from trainer import invariance_work as work
from trainer.ranks import run_ranks, values

RELATIVE = 1e-6


@pytest.fixture(scope="module")
def steps() -> dict[int, work.Result]:
    found: dict[int, work.Result] = values(run_ranks(1, work.steps, 8, 4, 2, 1, -1, patience=120))[0]
    return found


def test_the_rows_have_a_micro_batch_without_targets_and_no_two_alike() -> None:
    rows = work.rows()
    assert rows.target_counts.tolist() == [1, 30, 4, 12, 6, 0, 8, 3]
    assert len(set(rows.lengths)) == 8


@pytest.mark.parametrize("per_device", [4, 2, 1])
def test_batch_8_in_one_pass_equals_smaller_micro_batches(per_device: int, steps: dict[int, work.Result]) -> None:
    assert differences(steps[8], steps[per_device]) == []


def test_a_mean_per_micro_batch_is_found_out(steps: dict[int, work.Result]) -> None:
    loss, gradients = steps[8]
    assert len(differences((loss, gradients), steps[-1])) == len(gradients)


def differences(reference: work.Result, other: work.Result) -> list[str]:
    """What differs by more than RELATIVE, norms of the difference over norms."""
    found = [] if abs(reference[0] - other[0]) <= RELATIVE * reference[0] else [f"loss {reference[0]} {other[0]}"]
    assert reference[1].keys() == other[1].keys()
    for name, gradient in reference[1].items():
        error = float((gradient - other[1][name]).norm() / gradient.norm())
        found += [] if error <= RELATIVE else [f"{name}: {error:.1e}"]
    return found
