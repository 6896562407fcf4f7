"""Heartbeats: how far each rank of a node is, in memory that the launcher reads.

They come from the work itself: after a batch, a step, a tensor that was written. A thread of its own would go on
while the work stands still. Recording one is a store into shared memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .files import Files, Sink

_FILE = "heartbeats"
_ACTIVITY, _STEP, _POSITION, _STEPPING, _CONNECTED = range(5)
_SLOTS = 5
_BYTES = 8 * _SLOTS


class RankProgress(NamedTuple):
    """How far a rank is. Anything that changes is progress."""

    activity: int
    """Heartbeats so far; 0 until the rank answers signals."""
    step: int
    """Optimizer steps done."""
    position: int
    """Heartbeats of the loop since the last step; the same place in the loop has the same number on every rank."""
    stepping: bool
    """Whether steps or evaluations follow each other: the first step is done, and nothing is being saved."""
    connected: bool
    """Whether the rank is in the process group; before, it waits for the ranks of other nodes."""


class Heartbeat:
    """The heartbeat of one rank; without memory of the launcher, it is recorded in vain."""

    def __init__(self, memory: memoryview | None = None) -> None:
        self._slots = memoryview(bytearray(_BYTES)).cast("Q") if memory is None else memory

    def active(self) -> None:
        """Something was done, such as a write, that other ranks need not do."""
        self._slots[_ACTIVITY] += 1

    def connected(self) -> None:
        """The process group exists."""
        self._slots[_CONNECTED] = 1
        self._slots[_ACTIVITY] += 1

    def advance(self) -> None:
        """The loop has done a part of a step or of an evaluation, as it does on every rank."""
        self._slots[_POSITION] += 1
        self._slots[_ACTIVITY] += 1

    def resumed(self, step: int) -> None:
        """`step` optimizer steps were done by earlier runs."""
        self._slots[_STEP] = step
        self._slots[_ACTIVITY] += 1

    def done(self, step: int) -> None:
        """`step` optimizer steps are done."""
        self._slots[_STEP] = step
        self._slots[_POSITION] = 0
        self._slots[_STEPPING] = 1
        self._slots[_ACTIVITY] += 1

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While the context lasts, other ranks may write for long while this one waits."""
        before, self._slots[_STEPPING] = self._slots[_STEPPING], 0
        yield
        self._slots[_STEPPING] = before
        self._slots[_ACTIVITY] += 1


class HeartbeatFiles:
    """`Files` whose every write is a heartbeat."""

    def __init__(self, files: Files, heartbeat: Heartbeat) -> None:
        self._create = files.create
        self._heartbeat = heartbeat
        self.folder, self.fsync, self.rename, self.remove = files.folder, files.fsync, files.rename, files.remove

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        with self._create(path) as sink:
            yield _HeartbeatSink(sink, self._heartbeat)


class _HeartbeatSink:
    def __init__(self, sink: Sink, heartbeat: Heartbeat) -> None:
        self._sink = sink
        self._heartbeat = heartbeat

    def write(self, content: Any, /) -> int:
        self._heartbeat.active()
        return self._sink.write(content)


class Heartbeats:
    """The heartbeats of all ranks of a node: a file in the handoff folder that launcher and ranks map."""

    def __init__(self, folder: Path, ranks: int) -> None:
        (folder / _FILE).write_bytes(bytes(_BYTES * ranks))
        self._slots = _mapped(folder)

    def read(self) -> tuple[RankProgress, ...]:
        """In order of local ranks."""
        slots = self._slots.tolist()
        return tuple(_progress(*slots[start : start + _SLOTS]) for start in range(0, len(slots), _SLOTS))


def join(folder: Path, local_rank: int) -> Heartbeat:
    """The heartbeat of a rank. Its first one says that the rank answers signals."""
    heartbeat = Heartbeat(_mapped(folder)[local_rank * _SLOTS : (local_rank + 1) * _SLOTS])
    heartbeat.active()
    return heartbeat


def _progress(activity: int, step: int, position: int, stepping: int, connected: int) -> RankProgress:
    return RankProgress(activity, step, position, bool(stepping), bool(connected))


def _mapped(folder: Path) -> memoryview:
    with (folder / _FILE).open("r+b") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0)).cast("Q")
