"""Warnings about a tokenised dataset that do not fail the run. Called by `prepare`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from finetune_data import Dataset, Row

from .chat import ChatTokenizer
from .template import NOW

_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Counts:
    """Counts of changes to the sequences."""

    split: int
    """Rows that became several sequences."""
    truncated: int
    """Sequences truncated at the end."""
    dropped: int
    """Sequences dropped because their first target is beyond the sequence length, while others of the row remain."""


def of(dataset: Dataset, tokenizer: ChatTokenizer, stops: Iterable[int], counts: Counts) -> tuple[str, ...]:
    """One sentence per warning. `stops` are the tokens that end trained turns."""
    return (
        *_of_counts(counts),
        *_of_stops(tokenizer, set(stops)),
        *_of_rows(dataset.rows, tokenizer),
        *_of_dates(tokenizer),
        *_of_columns(dataset.ignored_columns),
    )


def _of_counts(counts: Counts) -> Iterator[str]:
    if counts.truncated:
        yield f"{counts.truncated} sequences were truncated to the sequence length"
    if counts.dropped:
        yield f"{counts.dropped} later turns were dropped: they start beyond the sequence length"
    if counts.split:
        yield f"the chat template rewrites earlier turns: {counts.split} rows were split into several sequences"


def _of_stops(tokenizer: ChatTokenizer, stops: set[int]) -> Iterator[str]:
    if not tokenizer.stop_ids & stops:
        ends = tokenizer.turn_ends
        here, known = (", ".join(ends[i] for i in sorted(ids)) for ids in (stops, tokenizer.stop_ids))
        stops_at = f"generation of this model stops at {known or 'no token'}"
        yield f"turns end with {here}, but {stops_at}"


def _of_rows(rows: tuple[Row, ...], tokenizer: ChatTokenizer) -> Iterator[str]:
    tools = sum(bool(row.tools) and not tokenizer.template_for(row).references("tools") for row in rows)
    if tools:
        yield f"{tools} rows declare tools, but the chat template does not render them"
    reasoning = sum(any(message.reasoning for message in row.messages) for row in rows)
    if reasoning and not any(tokenizer.templates["default"].references(name) for name in _REASONING):
        yield f"{reasoning} rows have reasoning, but the chat template does not render it"
    special = re.compile("|".join(map(re.escape, tokenizer.turn_ends.values())) or "(?!)")
    written = sum(any(special.search(message.content or "") for message in row.messages) for row in rows)
    if written:
        yield f"{written} rows contain the text of a special token in a message; it is tokenised as that token"


def _of_dates(tokenizer: ChatTokenizer) -> Iterator[str]:
    if any(template.references("strftime_now") for template in tokenizer.templates.values()):
        yield f"the chat template writes the current date; it is fixed to {NOW:%Y-%m-%d} for every row"


def _of_columns(ignored: Mapping[str, int]) -> Iterator[str]:
    if ignored:
        columns = ", ".join(f"{name} ({count})" for name, count in sorted(ignored.items()))
        yield f"training does not use these columns (number of occurrences): {columns}"
