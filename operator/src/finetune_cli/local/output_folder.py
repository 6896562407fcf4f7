"""The output folder of a local run: made, and locked for as long as the run lasts."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_api.validation.problem import Problem
from finetune_cli.errors import InvalidInput

LOCK = ".lock"
"""Holds the process id of the run. It stays: a lock that is removed can be taken twice."""
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Two runs in one folder would remove each other's files.

    Raises InvalidInput if the folder cannot be made, or if another run of this machine has it; OSError if nothing
    can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {output} cannot be created: {error.strerror}."
        raise _refused(message, "Give --output with another folder.") from None
    with (output / LOCK).open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            message = f"Another run (process {stream.read().strip() or 'unknown'}) is using the folder {output}."
            raise _refused(message, "Wait for it, stop it, or give --output with another folder.") from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        with suppress(OSError):  # on a full disk, another run would not learn our number
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
        yield


def _refused(message: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem("spec.output.uri", "OutputRefused", message, remedy)])
