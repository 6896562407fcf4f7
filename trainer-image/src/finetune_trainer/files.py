"""Durable files: once a call returns, the bytes survive a crash of the machine, and no reader sees a partial file.

All writes of a save go through `Files`, one operation at a time. That is the seam for failpoints: a test passes
a `Files` that kills the process at a chosen operation. `DISK` is the real implementation.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from finetune_data import regular

from .errors import StorageFailed

TEMPORARY = ".tmp-"
"""Prefix of incomplete files and folders. After a crash they may be removed."""
Access = Literal["read", "write"]


class Sink(Protocol):
    """A file open for writing; bytes are appended."""

    def write(self, content: Any, /) -> int: ...


class Files(Protocol):
    """The operations a save consists of. Each raises OSError."""

    def folder(self, path: Path) -> None:
        """Create a folder that does not exist, in a parent that does."""

    def create(self, path: Path) -> AbstractContextManager[Sink]:
        """Open a new or truncated file for writing; it is closed when the context ends."""

    def fsync(self, path: Path) -> None:
        """Flush the bytes of a file, or the entries of a folder, to the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file or folder atomically; `new` may be an existing file."""

    def remove(self, path: Path) -> None:
        """Remove a file or an empty folder."""


class Disk:
    """Files of the operating system."""

    def folder(self, path: Path) -> None:
        path.mkdir()

    def create(self, path: Path) -> AbstractContextManager[Sink]:
        return regular.opened(path, "wb")

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
    """Write `path` atomically: at every moment and after any crash it has either the old or the new content."""
    temporary = path.with_name(TEMPORARY + path.name)
    with files.create(temporary) as stream:
        stream.write(content)
    files.fsync(temporary)
    files.rename(temporary, path)
    files.fsync(path.parent)


def create_durable(path: Path, content: bytes) -> bool:
    """Like `write_durable`, unless the file exists: of several processes that try at the same time, one creates it.

    On a volume without hard links, the last of them does.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        with DISK.create(temporary) as stream:
            stream.write(content)
        DISK.fsync(temporary)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            DISK.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    DISK.fsync(path.parent)
    return True


def fsync_tree(folder: Path, files: Files = DISK) -> None:
    """Flush a folder to the disk: its files first, then its entries."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            fsync_tree(path, files)
        else:
            files.fsync(path)
    files.fsync(folder)


def remove_tree(folder: Path, files: Files = DISK) -> None:
    """Remove a folder and its content, or a file in its place. Links are removed, not followed, also as `folder`."""
    if folder.is_symlink() or not folder.is_dir():
        files.remove(folder)
        return
    for path in sorted(folder.iterdir()):
        remove_tree(path, files)
    files.remove(folder)


def require_space(folder: Path, size: int, remedy: str = "") -> None:
    """Raises StorageFailed if the volume of `folder` has fewer than `size` bytes left, as far as it says so."""
    with storage_errors(folder):
        volume = os.statvfs(folder)
    left = volume.f_bavail * volume.f_frsize
    if volume.f_blocks and left < size:
        raise StorageFailed(
            f"{folder} needs {_spelled(size)}, and its volume has {_spelled(left)} left; {remedy or _FULL}"
        )


def _spelled(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def storage_failure(error: BaseException) -> StorageFailed | None:
    """The failure of a volume that led to `error`, if one did: the input is not to blame, and it may pass.

    An error of ours keeps its own message.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, StorageFailed):
        if isinstance(cause, OSError) and cause.errno in _FAILING:
            where = cause.filename or "a volume"
            return StorageFailed(f"{where}: {cause.strerror}; check that the volume is mounted and has free space")
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def storage_errors(path: Path, access: Access = "write") -> Iterator[None]:
    """Turn an OSError into StorageFailed with the path, the reason and the remedy."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(describe(error, path, access)) from error


def describe(error: OSError, path: Path, access: Access = "write") -> str:
    """The message for a failed read or write; `path` is used if the error names none."""
    remedy = _REMEDIES.get(error.errno or 0, _MOUNTED[access]).format(access=access)
    return f"cannot {access} {error.filename or path}: {error.strerror or error}; {remedy}"


_FAILING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE})
"""Errors of the storage itself, whatever was read or written."""
_WITHOUT_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL})
_FULL = "free space on the output volume, or lower training.save_total_limit"
_DENIED = "grant {access} access to the user that the trainer runs as"
_TOO_MANY = "raise the limit of open files (ulimit -n)"
_REPLACED = "remove it: a run writes regular files of its own"
_MOUNTED: dict[Access, str] = {
    "read": "check that the output volume is mounted",
    "write": "check that the output volume is mounted and writable",
}
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EMFILE: _TOO_MANY,
    errno.ENFILE: _TOO_MANY,
    errno.ENXIO: _REPLACED,
    errno.EROFS: "mount the output volume read-write",
}
