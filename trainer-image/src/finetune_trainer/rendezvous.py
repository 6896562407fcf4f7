"""Where the ranks of a run find each other before they form a process group. Used by environment.py.

Nodes begin at different times, and each prepares its files first: one may download the model while another one has
it. So a rank waits for all of them here, with heartbeats; the time limit of the process group is for collectives.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .errors import PeerLost
from .handoff import STORE_ENV

TIMEOUT = timedelta(hours=2)
"""For the last node to be there after the first one."""
_CONNECT = timedelta(minutes=15)
"""For rank 0 to answer at its port, which its launcher may have opened."""
_SHORTEST_S, _LONGEST_S, _NOTICE_S = 0.01, 1.0, 60.0
_JOINED = "joined"

_log = logging.getLogger(__name__)


def store(environment: Mapping[str, str], waiting: Callable[[], None], limit: timedelta = TIMEOUT) -> Any:
    """The store of all ranks, once every rank is there. `waiting` is called meanwhile. Raises PeerLost."""
    wait = _Wait(environment, waiting, limit)
    master = environment["RANK"] == "0"
    address = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    while not (master or _listens(address)):
        wait.pause(0)
    descriptor = environment.get(STORE_ENV)
    found = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not list it in __all__
        *address,
        is_master=master,
        timeout=_CONNECT,
        wait_for_workers=False,
        master_listen_fd=int(descriptor) if descriptor else None,
    )
    found.add(_JOINED, 1)
    while (joined := found.add(_JOINED, 0)) < wait.ranks:
        wait.pause(joined)
    return found


def _listens(address: tuple[str, int]) -> bool:
    """Whether anybody does. (A store that is asked in vain logs stacks.)"""
    try:
        socket.create_connection(address, _LONGEST_S).close()
    except OSError:
        return False
    return True


class _Wait:
    """Pauses that become longer, up to the limit."""

    def __init__(self, environment: Mapping[str, str], waiting: Callable[[], None], limit: timedelta) -> None:
        self.ranks = int(environment["WORLD_SIZE"])
        self._says = environment["LOCAL_RANK"] == "0"
        self._waiting, self._limit = waiting, limit
        self._pause_s, self._begin = _SHORTEST_S, time.monotonic()
        self._noticed = self._begin

    def pause(self, joined: int) -> None:
        state = f"{joined} of {self.ranks} ranks are there"
        now = time.monotonic()
        if now - self._begin > self._limit.total_seconds():
            raise PeerLost(f"{state} after {self._limit}; check that all pods run and reach each other's ports")
        if self._says and now - self._noticed > _NOTICE_S:
            self._noticed = now
            _log.warning("%s; a node joins once it has downloaded and prepared its files", state)
        self._waiting()
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_S)
