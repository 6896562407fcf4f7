"""One holder at a time, whatever happens to it. Real processes on one cache: test_hub.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_trainer.lease import Lease

NEVER, AT_ONCE = 1e6, 0.0
"""Seconds after which a silent lease is taken over."""
WAITERS = 8


def nothing() -> None:
    """Neither is there anything to watch, nor is a lost lease worth a word."""


def held_before(folder: Path) -> None:
    """By a process that was killed."""
    assert Lease(folder, NEVER).acquire()


def released_before(folder: Path) -> None:
    lease = Lease(folder, NEVER)
    assert lease.acquire()
    with lease.held(nothing, nothing):
        """It is released at once."""


@pytest.mark.parametrize(
    ("before", "silence", "holders"),
    [
        pytest.param(lambda _: None, 0, 1, id="a lease that nobody has had"),
        pytest.param(released_before, 0, 1, id="a lease that was released"),
        pytest.param(held_before, 0, 0, id="a lease that somebody has"),
        pytest.param(held_before, 2 * NEVER, 1, id="a lease whose holder is silent"),
    ],
)
def test_of_many_that_ask_at_once_one_at_most_gets_the_lease(
    tmp_path: Path, before: Callable[[Path], None], silence: float, holders: int
) -> None:
    before(tmp_path)
    leases = [Lease(tmp_path, NEVER) for _ in range(WAITERS)]
    for lease in leases:
        lease._observed = (lease._newest(), lease._read(lease._newest()))
        lease._since -= silence
    ready = threading.Barrier(WAITERS)

    def ask(lease: Lease) -> bool:
        ready.wait()
        return lease.acquire()

    with ThreadPoolExecutor(WAITERS) as threads:
        assert sum(threads.map(ask, leases)) == holders
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lease_with_heartbeats_is_not_taken_over(tmp_path: Path) -> None:
    """The waiter looks after each heartbeat, however late that is."""
    heartbeats = threading.Semaphore(0)
    holder, waiter = Lease(tmp_path, 0.06), Lease(tmp_path, NEVER)
    assert holder.acquire()
    assert not waiter.acquire()
    contents: set[tuple[int, str]] = set()
    with holder.held(heartbeats.release, nothing):
        while len(contents) < 3:
            heartbeats.acquire()
            assert not waiter.acquire()
            contents.add(waiter._observed)
    assert waiter.acquire()


def test_a_holder_whose_lease_was_taken_over_is_told(tmp_path: Path) -> None:
    lost = threading.Event()
    holder, waiter = Lease(tmp_path, 0.06), Lease(tmp_path, AT_ONCE)
    assert holder.acquire()
    with holder.held(nothing, lost.set):
        while not waiter.acquire():
            time.sleep(0.001)
        assert lost.wait(60)


def test_a_late_waiter_does_not_get_a_number_that_others_have_had(tmp_path: Path) -> None:
    late = Lease(tmp_path, NEVER)
    for _ in range(3):
        released_before(tmp_path)
    assert not late._create(2)
    assert [path.name for path in tmp_path.iterdir()] == ["download-3"]


def test_the_host_of_the_holder_is_known(tmp_path: Path) -> None:
    held_before(tmp_path)
    waiter = Lease(tmp_path, NEVER)
    assert not waiter.acquire()
    assert waiter.holder
