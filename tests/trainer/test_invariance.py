"""Cutting a step into micro batches is a matter of memory: it changes neither the loss nor a gradient."""

from __future__ import annotations

import pytest
import torch

from trainer import invariance_work as work
from trainer.ranks import run_ranks, values

RELATIVE = 1e-6
"""Largest difference. In fp64 for each gradient. In fp32 for all of them together: queries and keys of single
layers carry rounding of that size already, since what reaches them through the softmax nearly cancels out."""

Steps = dict[torch.dtype, dict[int, work.Result]]
CUTS = (4, 2, 1)


@pytest.fixture(scope="module")
def steps() -> Steps:
    found: Steps = values(run_ranks(1, work.steps, 8, *CUTS, -1))[0]
    return found


def test_the_rows_have_a_micro_batch_without_targets_and_no_two_alike() -> None:
    rows = work.rows()
    assert rows.target_counts.tolist() == [1, 15, 4, 12, 6, 0, 2, 3]
    assert len(set(rows.lengths)) == 8


@pytest.mark.parametrize("per_device", CUTS)
def test_every_gradient_is_that_of_batch_8_in_one_pass(per_device: int, steps: Steps) -> None:
    exact = steps[torch.float64]
    assert differences(exact[8], exact[per_device]) == []


@pytest.mark.parametrize("per_device", CUTS)
def test_loss_and_gradient_are_those_of_batch_8_in_the_format_of_training(per_device: int, steps: Steps) -> None:
    (loss, gradients), (other_loss, others) = steps[torch.float32][8], steps[torch.float32][per_device]
    assert abs(loss - other_loss) <= RELATIVE * loss
    expected, other = (torch.cat([g[name].flatten() for name in gradients]) for g in (gradients, others))
    error = float((expected - other).norm() / expected.norm())
    assert error <= RELATIVE


def test_a_mean_per_micro_batch_is_found_out(steps: Steps) -> None:
    loss, gradients = steps[torch.float64][8]
    assert len(differences((loss, gradients), steps[torch.float64][-1])) == len(gradients) + 1, "the loss, too"


def differences(reference: work.Result, other: work.Result) -> list[str]:
    """What differs by more than RELATIVE, norms of the difference over norms."""
    found = [] if abs(reference[0] - other[0]) <= RELATIVE * reference[0] else [f"loss {reference[0]} {other[0]}"]
    assert reference[1].keys() == other[1].keys()
    for name, gradient in reference[1].items():
        error = float((gradient - other[1][name]).norm() / gradient.norm())
        found += [] if error <= RELATIVE else [f"{name}: {error:.1e}"]
    return found
