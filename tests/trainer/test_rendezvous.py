"""Ranks that begin at different times: each waits for the last one, and says that it is alive."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from finetune_trainer import rendezvous
from finetune_trainer.errors import PeerLost
from finetune_trainer.handoff import STORE_ENV

WORLD = 3
LONG_S = 60.0
SHORT = timedelta(milliseconds=100)


class Ranks:
    """Ranks as threads, on a port that is reserved before anybody listens there."""

    def __init__(self, reserved: socket.socket, threads: ThreadPoolExecutor) -> None:
        self._reserved, self._threads = reserved, threads
        self._port = reserved.getsockname()[1]
        self._beats = [threading.Semaphore(0) for _ in range(WORLD)]

    def begin(self, rank: int, limit: timedelta = rendezvous.TIMEOUT) -> Future[Any]:
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1"}
        environment = {name: str(value) for name, value in (variables | {"MASTER_PORT": self._port}).items()}
        if rank == 0:
            self._reserved.listen()
            environment[STORE_ENV] = str(self._reserved.detach())
        return self._threads.submit(rendezvous.store, environment, self._beats[rank].release, limit)

    def waits(self, rank: int) -> bool:
        return all(self._beats[rank].acquire(timeout=LONG_S) for _ in range(3))


@contextmanager
def ranks() -> Iterator[Ranks]:
    with socket.socket() as reserved, ThreadPoolExecutor(WORLD) as threads:
        reserved.bind(("127.0.0.1", 0))
        yield Ranks(reserved, threads)


def test_ranks_that_are_early_wait_for_the_last_one_with_heartbeats() -> None:
    with ranks() as nodes:
        early = nodes.begin(1)
        assert nodes.waits(1), "node 0 has not begun"
        first = nodes.begin(0)
        assert nodes.waits(0)
        assert nodes.waits(1), "node 2 has not begun"
        stores = [each.result(LONG_S) for each in (nodes.begin(2), first, early)]
        assert [store.add("joined", 0) for store in stores] == [WORLD] * WORLD


@pytest.mark.parametrize(
    ("rank", "there"), [(1, "0 of 3 ranks"), (0, "1 of 3 ranks")], ids=["without node 0", "with node 0"]
)
def test_a_rank_that_has_waited_too_long_says_how_many_are_there(rank: int, there: str) -> None:
    with (
        ranks() as nodes,
        pytest.raises(PeerLost, match=f"{there} are there after 0:00:00.100000; check that all pods"),
    ):
        nodes.begin(rank, limit=SHORT).result()
