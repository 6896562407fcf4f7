"""The output folder of a local run: checked, made, and locked for as long as the run lasts."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_api.resource import names
from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_cli.errors import InvalidInput
from finetune_data import regular
from finetune_plan.job_settings import JobSettings

from .recorder import LOGS, STATUS, previous_run

LOCK = ".lock"
"""Holds the process id of the command. It stays: a lock that is removed can be taken twice."""
PID_DIGITS = 10
"""More than the process ids of any system have."""
_ANOTHER = "Give --output with another folder."
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def problems(job: JobSettings, output: Path) -> Iterator[Problem]:
    """A folder in which a run would write over files of others; found before anything is written there."""
    for used, what in ((job.model, "model"), (job.lora.source, "adapter to continue from")):
        source = used.value and uris.KEYS[used.key].parse(used.value)
        if source and source.scheme is Scheme.PATH and output.resolve() == Path(source.path).resolve():
            yield _problem(f"{output} is the folder of the {what}, which a run leaves as it is.", _ANOTHER)
    if os.path.lexists(output / STATUS) and not previous_run(output):
        message = f"{output / STATUS} is not the status of a run, and a run would write over it."
        yield _problem(message, "Move it away, or give --output with another folder.")
    yield from _in_the_way(output, names.run_name(job.name, previous_run(output) + 1))


def _in_the_way(output: Path, run: str) -> Iterator[Problem]:
    """What is no file, or no folder, where a run writes: a link leads to files of others, and a pipe never ends."""
    logs = output / LOGS
    files = [output / LOCK, *(sorted(logs.glob(f"{run}-*.log")) if _kind(logs) == stat.S_IFDIR else ())]
    for path, wanted in ((logs, stat.S_IFDIR), *((path, stat.S_IFREG) for path in files)):
        kind = _kind(path)
        if kind not in (wanted, None):
            found = _KINDS.get(kind or 0, "a device")
            message = f"{path} is {found}, and a run needs {_KINDS[wanted]} of its own there."
            yield _problem(message, "Remove it, or give --output with another folder.")


def _kind(path: Path) -> int | None:
    """The type of what is there (S_IFREG, ...), of a link itself; None if nothing is, or nothing can be seen."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except OSError:
        return None


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Two runs in one folder would remove each other's files. Yields the descriptor that holds the lock.

    The lock lasts until every process that has inherited the descriptor has ended, too.

    Raises InvalidInput if the folder cannot be made, or if another run of this machine has it; OSError if nothing
    can be written there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {output} cannot be created: {error.strerror}."
        raise _refused(message, _ANOTHER) from None
    with regular.opened(output / LOCK, "a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise _in_use(output, stream.read(PID_DIGITS)) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        with suppress(OSError):  # on a full disk, another run would not learn our number
            stream.truncate(0)
            stream.write(str(os.getpid()).encode())
            stream.flush()
        yield stream.fileno()


def _in_use(output: Path, content: bytes) -> InvalidInput:
    """`content` is that of the lock."""
    pid = int(content) if content.isdigit() else None
    if pid is None or _is_alive(pid):
        message = f"Another run (process {pid or 'unknown'}) is using the folder {output}."
        return _refused(message, "Wait for it, stop it, or give --output with another folder.")
    message = f"The run of process {pid}, which was killed, is still saving a checkpoint in the folder {output}."
    return _refused(message, "Wait a moment and run the same command again, or give --output with another folder.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def _refused(message: str, remedy: str) -> InvalidInput:
    return InvalidInput([_problem(message, remedy)])


def _problem(message: str, remedy: str) -> Problem:
    return Problem("spec.output.uri", MEANINGS[Exit.OUTPUT_REFUSED].reason, message, remedy)
