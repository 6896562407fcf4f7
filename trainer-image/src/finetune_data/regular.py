"""Regular files, where others may have put something else in their place.

Opening a pipe waits for the process at its other end, and writing through a link changes a file somewhere else. Here
both are an OSError that names the file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any

_WRONG = {errno.ELOOP: "Is a link", errno.ENXIO: "Is a pipe"}


def opened(path: Path, mode: str) -> IO[Any]:
    """Like Path.open, for a regular file; one to be written must not be a link. Raises OSError."""
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=_open)


def content(path: Path) -> bytes:
    """All bytes of a regular file, also through links. Raises OSError."""
    with opened(path, "rb") as stream:
        found: bytes = stream.read()
        return found


def _open(path: str, flags: int) -> int:
    writes = flags & os.O_ACCMODE != os.O_RDONLY
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | (os.O_NOFOLLOW if writes else 0), 0o666)
    except OSError as error:
        wrong = _WRONG.get(error.errno or 0) if writes else None
        raise OSError(errno.ENXIO, wrong, path) if wrong else error from None
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.ENXIO, "Is not a regular file", path)
