"""Records: one line each on standard output and in the output's records.jsonl.

Written by rank 0 while it runs, and by its node's launcher before and after.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Protocol, TextIO

from finetune_api.runtime.protocol import RECORDS
from finetune_data import regular

from .files import storage_errors


class JsonRecord(Protocol):
    def line(self) -> str: ...


class RecordWriter:
    """Called with a record; writes nothing on ranks other than 0."""

    def __init__(self, output: Path, *, enabled: bool) -> None:
        self._path = output / RECORDS
        self._enabled = enabled

    def __call__(self, record: JsonRecord) -> None:
        if not self._enabled:
            return
        print_record(record)
        with storage_errors(self._path), regular.opened(self._path, "a+b") as stream:
            stream.write(_missing_end(stream) + record.line().encode() + b"\n")


def _missing_end(stream: IO[bytes]) -> bytes:
    """The end of the last line, if it has none: its writer was killed, or the volume was full."""
    if stream.seek(0, os.SEEK_END) == 0:
        return b""
    stream.seek(-1, os.SEEK_END)
    return b"" if stream.read() == b"\n" else b"\n"


def print_record(record: JsonRecord) -> None:
    """Print a record. A closed pipe does not end the run: the file has every record."""
    print_line(record.line())


def print_line(text: str) -> None:
    """Print a line, or nothing once its reader is gone."""
    _print(f"{text}\n", sys.stdout)


def print_error(sentence: str) -> None:
    """Print a line on standard error, or nothing once its reader is gone."""
    print_lines(f"finetune-trainer: {sentence}\n")


def print_lines(text: str) -> None:
    """Write to standard error what ends with a newline or is empty, or nothing once its reader is gone."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
