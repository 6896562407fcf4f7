"""Stopping on request: a signal on one rank stops all, and handlers are restored afterwards."""

from __future__ import annotations

import signal

import pytest

from finetune_trainer.stop import SIGNALS, Stop
from trainer import stop_work as work
from trainer.ranks import run_ranks, values


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_asks_the_loop_to_stop(number: signal.Signals) -> None:
    with Stop() as stop:
        assert not stop.requested_on_any_rank(work.CPU)
        signal.raise_signal(number)
        assert stop.requested_on_any_rank(work.CPU)
        assert stop.signal is number


@pytest.mark.parametrize("victim", [0, 2])
def test_all_ranks_end_at_the_step_in_which_one_was_signalled(victim: int) -> None:
    assert values(run_ranks(3, work.steps_until_stop, victim, 4, signal.SIGTERM)) == [4, 4, 4]


def test_without_a_signal_no_rank_stops() -> None:
    assert values(run_ranks(2, work.steps_until_stop, -1, 4, signal.SIGTERM)) == [0, 0]


def test_the_second_signal_of_a_kind_ends_the_process() -> None:
    [ended] = run_ranks(1, work.signal_twice, signal.SIGTERM)
    assert ended.code == -signal.SIGTERM


def test_two_kinds_of_signal_are_one_request() -> None:
    assert values(run_ranks(1, work.interrupt_then_terminate)) == [True]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
