"""One process at a time fills a folder that nodes share, also on a network file system.

The lease is the file with the greatest number. Only its creation decides who holds it: NFS from version 3 on creates
a name exclusively (open(2) about O_EXCL; RFC 1813, 3.3.8). Locks are not used, because some network file systems
grant them to everybody. Clocks of two machines are not compared: a waiter sees a file that changes, or does not for a
time that it measures itself.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "download-"
_FREE = "free"
_HEARTBEATS = 6
"""Heartbeats in the time after which a lease without one is taken over."""
_GONE = (errno.ENOENT, errno.ESTALE)


class Lease:
    """The lease of one process on a folder. A holder that is killed or paused is replaced after `stale_s` seconds."""

    def __init__(self, folder: Path, stale_s: float) -> None:
        self._folder, self._stale_s = folder, stale_s
        self._number = 0
        self._observed = (0, "")
        self._since = time.monotonic()

    @property
    def holder(self) -> str:
        """Host of the process that held the lease when it was asked for."""
        return self._observed[1].partition(" ")[0]

    def acquire(self) -> bool:
        """Whether the lease is this process's now; if not, ask again later. Raises OSError if there can be none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = self._newest()
        observed = (number, self._read(number))
        if observed != self._observed:
            self._observed, self._since = observed, time.monotonic()
        free = number == 0 or observed[1] == _FREE
        return (free or time.monotonic() - self._since > self._stale_s) and self._create(number + 1)

    @contextmanager
    def held(self, watch: Callable[[], None], lost: Callable[[], None]) -> Iterator[None]:
        """While the context lasts, the lease is renewed by a thread, which also calls `watch`. It ends released.

        `lost` has to stop whatever needs the lease: another process has taken it, or may do so.
        """
        released = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(released, watch, lost), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            released.set()
            renewing.join()
            with suppress(OSError):  # others then wait until it is stale
                self._write(_FREE)

    def _renew(self, released: threading.Event, watch: Callable[[], None], lost: Callable[[], None]) -> None:
        renewed = time.monotonic()
        while not released.wait(self._stale_s / _HEARTBEATS):
            watch()
            try:
                self._write(_mark())
                renewed = time.monotonic()
            except OSError as error:
                if error.errno in _GONE or time.monotonic() - renewed > self._stale_s:
                    lost()

    def _create(self, number: int) -> bool:
        """Whether this process has created the lease `number`, which ends those before it."""
        try:
            with self._path(number).open("x") as stream:
                stream.write(_mark())
        except FileExistsError:
            return False
        self._number = number
        if self._newest() > number:  # the list of files was outdated
            self._path(number).unlink()
            return False
        for older in self._numbers():
            if older < number:
                self._path(older).unlink(missing_ok=True)
        return True

    def _numbers(self) -> list[int]:
        return [int(path.name.removeprefix(_PREFIX)) for path in self._folder.glob(f"{_PREFIX}*")]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _path(self, number: int) -> Path:
        return self._folder / f"{_PREFIX}{number}"

    def _read(self, number: int) -> str:
        try:
            return self._path(number).read_text()
        except OSError:  # it was taken over in this moment
            return ""

    def _write(self, text: str) -> None:
        """Replace the content of the own file, which is not created again. Opening it asks the server."""
        with self._path(self._number).open("r+") as stream:
            stream.write(text)
            stream.truncate()


def _mark() -> str:
    """What no other heartbeat is, with the host for messages."""
    return f"{socket.gethostname()} {os.getpid()} {time.monotonic_ns()}"
