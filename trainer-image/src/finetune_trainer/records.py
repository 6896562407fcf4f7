"""Where records go: one line each on standard output and in the output's records.jsonl.

Written by rank 0 while it runs and by its node's launcher before and after.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from finetune_api.runtime.protocol import RECORDS

from .files import storage_errors


class Line(Protocol):
    def line(self) -> str: ...


class Records:
    """Called with a record; a rank that is not the first one keeps quiet."""

    def __init__(self, output: Path, *, speaks: bool) -> None:
        self._path = output / RECORDS
        self._speaks = speaks

    def __call__(self, record: Line) -> None:
        if not self._speaks:
            return
        say(record)
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(record.line() + "\n")


def say(record: Line) -> None:
    """Print a record. A reader that has gone away does not end the run: the file has every record."""
    try:
        sys.stdout.write(record.line() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
