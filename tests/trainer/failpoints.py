"""Files that count what a save does to the disk, and can end the process at a chosen operation.

Dying also loses what was written and not synced, as a machine that loses power does: half of every such file.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from finetune_trainer.files import DISK, Sink


class Failing:
    """`Files` that dies at operation number `at` (from 1), before or after it; 0 only counts."""

    def __init__(self, at: int = 0, *, after: bool = False) -> None:
        self._at = at
        self._after = after
        self.log: list[tuple[str, Path]] = []
        self._unsynced: set[Path] = set()

    def folder(self, path: Path) -> None:
        with self._operation("folder", path):
            DISK.folder(path)

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        with self._operation("create", path):
            self._unsynced.add(path)
            with DISK.create(path) as sink:
                yield sink

    def fsync(self, path: Path) -> None:
        with self._operation("fsync", path):
            DISK.fsync(path)
            self._unsynced.discard(path)

    def rename(self, old: Path, new: Path) -> None:
        with self._operation("rename", old):
            DISK.rename(old, new)
            moved = {path for path in self._unsynced if path.is_relative_to(old)}
            self._unsynced -= moved
            self._unsynced |= {new / path.relative_to(old) for path in moved}

    def remove(self, path: Path) -> None:
        with self._operation("remove", path):
            DISK.remove(path)
            self._unsynced.discard(path)

    @contextmanager
    def _operation(self, name: str, path: Path) -> Iterator[None]:
        self.log.append((name, path))
        here = len(self.log) == self._at
        if here and not self._after:
            self._die()
        yield
        if here:
            self._die()

    def _die(self) -> None:
        for path in self._unsynced:
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


class Full:
    """`Files` of a volume that is full for files of the given names; everything else works."""

    folder = staticmethod(DISK.folder)
    fsync = staticmethod(DISK.fsync)
    rename = staticmethod(DISK.rename)
    remove = staticmethod(DISK.remove)

    def __init__(self, pattern: str = "*") -> None:
        self._pattern = pattern

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        with DISK.create(path) as sink:
            yield _FullSink() if fnmatch(path.name, self._pattern) else sink


class Slow:
    """`Files` of a volume that takes `seconds` to flush a file of the given names."""

    folder = staticmethod(DISK.folder)
    create = staticmethod(DISK.create)
    rename = staticmethod(DISK.rename)
    remove = staticmethod(DISK.remove)

    def __init__(self, pattern: str, seconds: float) -> None:
        self._pattern, self._seconds = pattern, seconds

    def fsync(self, path: Path) -> None:
        if fnmatch(path.name, self._pattern):
            time.sleep(self._seconds)
        DISK.fsync(path)


class Hidden:
    """`Files` of a volume that does not show files of one name yet after they are renamed; the rest works."""

    folder = staticmethod(DISK.folder)
    create = staticmethod(DISK.create)
    fsync = staticmethod(DISK.fsync)
    remove = staticmethod(DISK.remove)

    def __init__(self, name: str) -> None:
        self._name = name

    def rename(self, old: Path, new: Path) -> None:
        DISK.rename(old, new.with_name(f"hidden-{new.name}") if new.name == self._name else new)


class _FullSink:
    def write(self, content: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die(work: Callable[[], object]) -> None:
    """Run `work`, which is going to be killed, in a fork of this process, which has one thread."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the work ended by itself, with {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL
