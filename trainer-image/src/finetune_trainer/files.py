"""Durable files: after a return the bytes survive a crash of the machine, and no reader sees half a file.

Everything a save does to the disk goes through `Files`, one operation at a time. That is the seam for
failpoints: a test passes a `Files` that kills the process at a chosen operation. `DISK` is the real one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from .errors import StorageFailed

TEMPORARY = ".tmp-"
"""Prefix of names that hold nothing yet. Whatever carries it after a crash may be removed."""


class Sink(Protocol):
    """What a save needs of a file that is being written: bytes go to its end."""

    def write(self, content: Any, /) -> int: ...


class Files(Protocol):
    """The operations a save consists of. Each raises OSError."""

    def folder(self, path: Path) -> None:
        """Make one folder; its parent exists, it does not."""

    def create(self, path: Path) -> AbstractContextManager[Sink]:
        """Open a new file, or an emptied old one, for writing; the write is done when the context ends."""

    def fsync(self, path: Path) -> None:
        """Bring a file's bytes, or a folder's list of names, to the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name, in one step; `new` may be an existing file."""

    def remove(self, path: Path) -> None:
        """Remove a file or an empty folder."""


class Disk:
    """Files of the operating system."""

    def folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> AbstractContextManager[Sink]:
        return path.open("wb")

    def fsync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


DISK: Files = Disk()


def write_durable(path: Path, content: bytes, files: Files = DISK) -> None:
    """Write `path` so that it has the old content or the new one, at every moment and after any crash."""
    temporary = path.with_name(TEMPORARY + path.name)
    with files.create(temporary) as stream:
        stream.write(content)
    files.fsync(temporary)
    files.rename(temporary, path)
    files.fsync(path.parent)


def fsync_tree(folder: Path, files: Files = DISK) -> None:
    """Bring a folder that others have written to the disk: its files first, then the list of their names."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            fsync_tree(path, files)
        else:
            files.fsync(path)
    files.fsync(folder)


def remove_tree(folder: Path, files: Files = DISK) -> None:
    """Remove a folder that nobody reads any more. Links are removed, not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path, files)
        else:
            files.remove(path)
    files.remove(folder)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside into StorageFailed that names the path, the reason and the way out."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(explain(error, path)) from error


def explain(error: OSError, path: Path) -> str:
    """The sentence for a write that failed; `path` serves where the error names none."""
    remedy = _REMEDIES.get(error.errno or 0, "check that the output volume is mounted and can be written to")
    return f"cannot write {error.filename or path}: {error.strerror or error}; {remedy}"


_FULL = "free space on the output volume, or lower training.save_total_limit"
_DENIED = "let the user that the trainer runs as write there"
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: "mount the output volume for writing",
}
