"""Where records go: one line each on standard output and in the output's records.jsonl.

Written by rank 0 while it runs and by its node's launcher before and after.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

from finetune_api.output import RECORDS

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
        line = record.line() + "\n"
        sys.stdout.write(line)
        sys.stdout.flush()
        with storage_errors(self._path), self._path.open("a") as stream:
            stream.write(line)
