"""The dataset formats, and which one a row is in. Called by `read`.

A format is one file with one function of the signature `Parse`, and one line of FORMATS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from . import messages, prompt_response
from .jsonl import Record
from .problems import BadRow
from .rows import Row

Ignored = Counter[str]
"""Columns that a format met and does not use, counted."""
Parse = Callable[[int, Record, Ignored], Row]
"""(line, record, ignored) -> Row. Raises BadRow; adds to `ignored` what it does not use."""


@dataclass(frozen=True)
class Format:
    """A way to write a row."""

    name: str
    columns: frozenset[str]
    """A row with all of these is in this format."""
    parse: Parse


FORMATS = (
    Format("messages and a response", frozenset({"messages", "response"}), prompt_response.parse),
    Format("messages", frozenset({"messages"}), messages.parse),
)
"""Tried in this order, so that a format comes before those whose columns it extends."""


def parse(line: int, record: Record, ignored: Ignored) -> Row:
    """The row that `record` writes, in whichever format has its columns. Raises BadRow."""
    present = {key for key, value in record.items() if value is not None}
    for known in FORMATS:
        if known.columns <= present:
            return known.parse(line, record, ignored)
    has = ", ".join(sorted(present)) or "none"
    raise BadRow(f'messages is missing (columns here: {has}); write {{"messages": [...]}}')
