"""What a person should know about a prepared dataset, though nothing of it stops a run. Called by `prepare`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune_data import Dataset, Row

from .chat import ChatTokenizer
from .template import NOW

_REASONING = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Counts:
    """What happened to the sequences."""

    split: int
    """Rows that became more than one."""
    truncated: int
    """Sequences cut at the end."""
    lost: int
    """Sequences, of rows with others, that were cut before their first target."""


def of(dataset: Dataset, tokenizer: ChatTokenizer, stops: Iterable[int], counts: Counts) -> tuple[str, ...]:
    """One sentence for each thing worth knowing. `stops` are the tokens that end trained turns."""
    return (
        *_of_counts(counts),
        *_of_stops(tokenizer, set(stops)),
        *_of_rows(dataset.rows, tokenizer),
        *_of_dates(tokenizer),
    )


def _of_counts(counts: Counts) -> Iterator[str]:
    if counts.truncated:
        yield f"{counts.truncated} sequences were cut at the end to fit the sequence length"
    if counts.lost:
        yield f"{counts.lost} later turns were left out: they begin after the sequence length"
    if counts.split:
        yield f"the chat template rewrites earlier turns: {counts.split} rows became several sequences each"


def _of_stops(tokenizer: ChatTokenizer, stops: set[int]) -> Iterator[str]:
    if not tokenizer.stop_ids & stops:
        ends = tokenizer.turn_ends
        here, known = (", ".join(ends[i] for i in sorted(ids)) for ids in (stops, tokenizer.stop_ids))
        yield f"turns end with {here}, where this model's configuration does not stop ({known or 'no stop token'})"


def _of_rows(rows: tuple[Row, ...], tokenizer: ChatTokenizer) -> Iterator[str]:
    tools = sum(bool(row.tools) and not tokenizer.template_for(row).mentions("tools") for row in rows)
    if tools:
        yield f"{tools} rows declare tools, which the chat template does not show"
    reasoning = sum(any(message.reasoning for message in row.messages) for row in rows)
    if reasoning and not any(tokenizer.templates["default"].mentions(name) for name in _REASONING):
        yield f"{reasoning} rows have reasoning, which the chat template does not show"
    special = re.compile("|".join(map(re.escape, tokenizer.turn_ends.values())) or "(?!)")
    written = sum(any(special.search(message.content or "") for message in row.messages) for row in rows)
    if written:
        yield f"{written} rows have the text of a special token in a message, which is read as that token"


def _of_dates(tokenizer: ChatTokenizer) -> Iterator[str]:
    if any(template.mentions("strftime_now") for template in tokenizer.templates.values()):
        yield f"the chat template writes the date; every row is given {NOW:%Y-%m-%d}"
