"""Runs the trainer's program that merges an adapter, and shows how far it is. Called by `finetune merge`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from finetune_api.runtime import exits, merging
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.merging import MergeOutcome
from finetune_cli.remote.progress import OnProgress, progress

from .supervise import SIGNALS, handled_signals

PROGRAM = (sys.executable, "-m", "finetune_trainer.merging")
STOP_SECONDS = 20.0
"""For the program to remove what it has written after a request to stop."""


def run(adapter: Path, output: Path, base: str, *, quiet: bool) -> MergeOutcome:
    """The outcome of the program, also if it could not say one. Ctrl-C stops it."""
    command = [*PROGRAM, str(adapter), str(output), *([base] if base else [])]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}  # a file torch.py in the current folder must not shadow torch
    with handled_signals(SIGNALS, _interrupt), subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,  # so that Ctrl-C reaches only us
    ) as program:  # fmt: skip
        try:
            outcome = _followed(program, f"merging {adapter} to {output}", quiet=quiet)
        except BaseException:
            _stop(program)
            raise
    code = program.returncode if program.returncode >= 0 else 128 - program.returncode
    if outcome is not None and outcome.exit_code == code:
        return outcome
    meaning = exits.meaning(code or Exit.CRASHED)
    message = f"{meaning.sentence} {meaning.remedy}"
    return MergeOutcome(exit_code=code or Exit.CRASHED, reason=meaning.reason, message=message)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _followed(program: subprocess.Popen[str], title: str, *, quiet: bool) -> MergeOutcome | None:
    """The last line, if it is an outcome; the lines before move a bar."""
    assert program.stdout is not None
    outcome, show = None, None
    with ExitStack() as stack:
        for text in program.stdout:
            try:
                line = merging.parse(text)
            except ValueError:  # of a library
                continue
            if isinstance(line, MergeOutcome):
                outcome = line
            else:
                show = show or _displayed(stack, title, line.total, quiet=quiet)
                show(line.done)
    return outcome


def _displayed(stack: ExitStack, title: str, total: int, *, quiet: bool) -> OnProgress:
    return stack.enter_context(progress(title, total, quiet=quiet))


def _stop(program: subprocess.Popen[str]) -> None:
    program.terminate()
    try:
        program.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        program.kill()
