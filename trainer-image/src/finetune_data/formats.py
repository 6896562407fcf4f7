"""The registry of dataset formats. Called by `read`.

A format is one file with one function of the signature `Parse`, and one entry in FORMATS. Nothing else names a
format: error messages list the examples of the registered ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import messages, prompt_response
from .jsonl import Record
from .problems import InvalidRow
from .rows import Row

Ignored = Counter[str]
"""Columns that a format does not use, counted."""
Parse = Callable[[int, Record, Ignored], Row]
"""(line, record, ignored) -> Row. Raises InvalidRow; adds the columns that it does not use to `ignored`."""


@dataclass(frozen=True)
class Format:
    """One format of a row."""

    columns: frozenset[str]
    """A row with all of these is in this format."""
    example: str
    """A minimal row, for messages."""
    parse: Parse


FORMATS = (
    Format(prompt_response.COLUMNS, prompt_response.EXAMPLE, prompt_response.parse),
    Format(messages.COLUMNS, messages.EXAMPLE, messages.parse),
)
"""Tried in this order: a format comes before those with a subset of its columns."""


def parse(line: int, record: Record, ignored: Ignored, formats: Sequence[Format] = FORMATS) -> Row:
    """Parse `record` in the first format whose columns it has. Raises InvalidRow."""
    present = {key for key, value in record.items() if value is not None}
    for candidate in formats:
        if candidate.columns <= present:
            return candidate.parse(line, record, ignored)
    columns = ", ".join(sorted(present)) or "none"
    raise InvalidRow(f"the columns match no dataset format (columns: {columns}); write {examples(formats)}")


def examples(formats: Sequence[Format] = FORMATS) -> str:
    """A minimal row of each format, for messages."""
    return " or ".join(known.example for known in reversed(formats))
