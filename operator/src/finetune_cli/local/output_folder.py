"""The output folder of a local run: checked, made, and locked for as long as the run lasts."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.validation import uris
from finetune_api.validation.problem import Problem
from finetune_api.validation.uris import Scheme
from finetune_cli.errors import InvalidInput
from finetune_data import regular
from finetune_plan.job_settings import JobSettings

from .recorder import STATUS, previous_run

LOCK = ".lock"
"""Holds the process id of the run. It stays: a lock that is removed can be taken twice."""
_ANOTHER = "Give --output with another folder."
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def problems(job: JobSettings, output: Path) -> Iterator[Problem]:
    """A folder in which a run would write over files of others; found before anything is written there."""
    model = job.model.value
    if model and uris.MODEL.parse(model).scheme is Scheme.PATH and output.resolve() == Path(model).resolve():
        yield _problem(f"{output} is the folder of the model, which a run leaves as it is.", _ANOTHER)
    if os.path.lexists(output / STATUS) and not previous_run(output):
        message = f"{output / STATUS} is not the status of a run, and a run would write over it."
        yield _problem(message, "Move it away, or give --output with another folder.")


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
        raise _refused(message, _ANOTHER) from None
    with regular.opened(output / LOCK, "a+") as stream:
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
    return InvalidInput([_problem(message, remedy)])


def _problem(message: str, remedy: str) -> Problem:
    return Problem("spec.output.uri", MEANINGS[Exit.OUTPUT_REFUSED].reason, message, remedy)
