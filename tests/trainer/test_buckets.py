"""Gradients summed over replicas in several buckets: the sums, and their bits."""

from __future__ import annotations

import pytest

from trainer.buckets_work import PARAMETERS, Sums, sums
from trainer.ranks import run_ranks, values

RANKS = 3
"""The sum of two numbers has the same bits in any order, that of three has not."""
FORWARD = list(range(PARAMETERS))
BACKWARD = FORWARD[::-1]
ORDERS = {"backward": BACKWARD, "forward": FORWARD, "mixed": [2, 0, 4, 1, 3], "without one": [4, 2, 1, 0]}


@pytest.fixture(scope="module")
def found() -> dict[str, Sums]:
    first, *others = values(run_ranks(RANKS, sums, FORWARD, list(ORDERS.values())))
    assert all(other == first for other in others), "ranks have different sums"
    return dict(zip(ORDERS, first, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_summed_in_any_order_of_the_backward_pass(order: str, found: dict[str, Sums]) -> None:
    assert max(found[order].errors) < 1e-5


@pytest.mark.parametrize("order", ["forward", "mixed"])
def test_the_order_of_the_backward_pass_does_not_change_the_bits(order: str, found: dict[str, Sums]) -> None:
    assert found[order].digests == found["backward"].digests


def test_the_order_in_the_buckets_does(found: dict[str, Sums]) -> None:
    other = values(run_ranks(RANKS, sums, BACKWARD, [BACKWARD]))[0]
    assert other[0].digests != found["backward"].digests
