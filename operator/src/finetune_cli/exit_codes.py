"""Every exit code of the command line, and the one place that turns an exception into one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

OK = 0
FAILED = 1
"""The input is right; the run, or the cluster, failed."""
INPUT_WRONG = 2
INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h: a bug of ours."""
STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request after a checkpoint."""
INTERRUPTED = 130
"""128 + SIGINT."""
BROKEN_PIPE = 141
"""128 + SIGPIPE: the reader of our output has closed it."""


class Session:
    """The options in front of the verb, for code that runs after click has returned."""

    def __init__(self, *, debug: bool = False) -> None:
        self.debug = debug


def run(command: Callable[[], object], session: Session) -> int:
    """Run a click command outside of click's standalone mode; return the exit code. Raises nothing."""
    code = OK
    try:
        code = _exit_code(command, session)
        for stream in (sys.stdout, sys.stderr):
            if stream:  # None where the caller has closed it
                stream.flush()
    except OSError as error:  # the output cannot be written
        # The interpreter flushes both streams again at exit.
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - without pathlib
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else code or FAILED
    return code


def _exit_code(command: Callable[[], object], session: Session) -> int:
    stdout = sys.stdout  # after a broken pipe click replaces it, and exits with 1, which would say that a run failed
    try:
        found = command()
    except SystemExit as error:
        found = error.code if sys.stdout is stdout else BROKEN_PIPE
    except click.ClickException as error:
        error.show()
        found = error.exit_code
    except (click.Abort, KeyboardInterrupt):  # click turns Ctrl-C into Abort
        click.echo("Interrupted.", err=True)
        found = INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a file without permission: no bug of ours
        _report(f"the operating system reports: {error}", "Free space or correct permissions.", error, session)
        found = FAILED
    except Exception as error:  # noqa: BLE001 - the one edge: a bug ends in one sentence, not in a traceback
        message = f"internal error: {type(error).__name__}: {error}"
        _report(message, "This is a bug: please report it with the traceback.", error, session)
        found = INTERNAL_ERROR
    return found if isinstance(found, int) else OK


def _report(message: str, remedy: str, error: Exception, session: Session) -> None:
    import shlex  # noqa: PLC0415 - only an error that no verb expects needs these
    import traceback  # noqa: PLC0415

    if session.debug:
        traceback.print_exception(error)
    again = "" if session.debug else f" For the traceback, run: {shlex.join(['finetune', '--debug', *sys.argv[1:]])}"
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    click.echo(f"  remedy: {remedy}{again}", err=True)
