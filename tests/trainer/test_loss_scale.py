"""The loss scale of fp16: halved by an overflow, doubled by many steps without one."""

from __future__ import annotations

import copy

import pytest

from finetune_trainer.loss_scale import INITIAL, SMALLEST, STEADY_STEPS, LossScale


def after(*overflows: bool) -> LossScale:
    found = LossScale()
    for overflow in overflows:
        found.update(overflow=overflow)
    return found


STEADY = (False,) * STEADY_STEPS


@pytest.mark.parametrize(
    ("steps", "scale", "skipped"),
    [
        pytest.param((), INITIAL, 0, id="it begins large"),
        pytest.param((False,), INITIAL, 0, id="a step without overflow changes nothing"),
        pytest.param((True,), INITIAL / 2, 1, id="an overflow halves it"),
        pytest.param((True, False, True), INITIAL / 4, 2, id="each does, and each is counted"),
        pytest.param((True,) * 40, SMALLEST, 40, id="it has a smallest value"),
        pytest.param(STEADY[1:], INITIAL, 0, id="not enough steps without overflow"),
        pytest.param(STEADY, 2 * INITIAL, 0, id="many steps without overflow double it"),
        pytest.param((*STEADY[1:], True, *STEADY[1:]), INITIAL / 2, 1, id="the count begins again after an overflow"),
        pytest.param((*STEADY, *STEADY), 4 * INITIAL, 0, id="and after it was doubled"),
    ],
)
def test_scale(steps: tuple[bool, ...], scale: float, skipped: int) -> None:
    found = after(*steps)
    assert (found.scale, found.skipped_steps) == (scale, skipped)


def test_loading_the_state_in_place_continues_it() -> None:
    one, other = after(True, *STEADY[1:]), LossScale()
    for name, value in copy.deepcopy(one.state).items():
        other.state[name].copy_(value)
    one.update(overflow=False)
    other.update(overflow=False)
    assert (other.scale, other.skipped_steps) == (one.scale, one.skipped_steps) == (INITIAL, 1)
