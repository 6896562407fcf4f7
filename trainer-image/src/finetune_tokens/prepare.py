"""Turn a dataset into tokens and targets: render, tokenise, mask, cut, count. Called by the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from finetune_api.runtime.choices import OnBadRow
from finetune_data import Dataset, Row
from finetune_data.problems import BadRow, Problems

from . import mask, notes, spans
from .chat import ChatTokenizer
from .errors import StopTokenUntrained
from .prepared import Flags, Prepared, Tokens, assembled

_CHUNK = 1024
"""Rows rendered before their texts are tokenised together: many enough for every core, few enough for memory."""


@dataclass
class _Work:
    """What is collected on the way."""

    problems: Problems
    sequences: list[tuple[int, Tokens, Flags]] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)
    used: int = 0
    split: int = 0
    truncated: int = 0
    lost: int = 0


def prepare(
    dataset: Dataset,
    tokenizer: ChatTokenizer,
    sequence_length: int | None,
    on_bad_row: OnBadRow = OnBadRow.REFUSE,
    max_bad_share: float = 0.0,
) -> Prepared:
    """The tokens and targets of `dataset`. Longer sequences than `sequence_length` tokens lose their end.

    Raises DatasetRefused if the template or the cut leaves more rows without a target than the job allows, or
    all of them, and StopTokenUntrained if no trained turn ends with a token at which generation can stop.
    """
    work = _Work(Problems(dataset.problems, dataset.problem_count))
    for chunk in _chunks(dataset.rows):
        _take(chunk, tokenizer, sequence_length, work)
    work.problems.judge(dataset.path, dataset.rows_seen, on_bad_row, max_bad_share)
    stops = _trained_stops(dataset, tokenizer, work)
    tokens, targets, offsets, lines = assembled(work.sequences)
    return Prepared(
        tokens,
        targets,
        offsets,
        lines,
        rows=dataset.rows_seen,
        used=work.used,
        refused=work.problems.count,
        truncated=work.truncated,
        problems=work.problems.shown,
        stop_ids=stops,
        notes=notes.of(dataset, tokenizer, stops, notes.Counts(work.split, work.truncated, work.lost)),
    )


def _chunks(rows: tuple[Row, ...]) -> Iterator[tuple[Row, ...]]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def _take(rows: tuple[Row, ...], tokenizer: ChatTokenizer, limit: int | None, work: _Work) -> None:
    rendered = _rendered(rows, tokenizer, work.problems)
    texts = [sequence.text for _, sequences in rendered for sequence in sequences]
    encodings = iter(tokenizer.encode(texts))
    for row, sequences in rendered:
        masked = [_masked(next(encodings), sequence, limit) for sequence in sequences]
        kept = [(row.line, tokens, targets) for tokens, targets, _ in masked if targets.any()]
        if not kept:
            work.problems.add(row.line, _nothing_left(limit))
            continue
        work.used += 1
        work.split += len(masked) > 1
        work.lost += len(masked) - len(kept)
        work.truncated += sum(cut and bool(targets.any()) for _, targets, cut in masked)
        work.sequences += kept
        for _, tokens, targets in kept:
            work.ends.update(mask.run_ends(tokens, targets).tolist())


def _rendered(
    rows: tuple[Row, ...], tokenizer: ChatTokenizer, problems: Problems
) -> list[tuple[Row, list[spans.Rendered]]]:
    turn_ends = tuple(tokenizer.turn_ends.values())
    found = []
    for row in rows:
        try:
            found.append((row, spans.sequences(row, tokenizer.template_for(row), turn_ends)))
        except BadRow as problem:
            problems.add(row.line, problem)
    return found


def _masked(encoding: Encoding, sequence: spans.Rendered, limit: int | None) -> tuple[Tokens, Flags, bool]:
    """Tokens and targets of one text, and whether it had to be cut."""
    tokens = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    targets = mask.targets(offsets, sequence.spans)
    cut = limit is not None and len(tokens) > limit
    return tokens[:limit], targets[:limit], cut


def _nothing_left(limit: int | None) -> BadRow:
    if limit is None:
        return BadRow("no trainable token: tokens reach over every edge; put the answer on its own")
    reason = f"no trainable token: the answer begins after the sequence length of {limit} tokens"
    return BadRow(f"{reason}; shorten the row or raise sequence_length")


def _trained_stops(dataset: Dataset, tokenizer: ChatTokenizer, work: _Work) -> tuple[int, ...]:
    """The tokens, among those that end trained turns, at which generation can stop."""
    stops = tuple(sorted(work.ends & tokenizer.turn_ends.keys()))
    if stops:
        return stops
    if work.truncated == len(work.sequences):
        remedy = "Every row is cut before its end: raise sequence_length, or shorten the rows."
    else:
        remedy = "Let the chat template write it after each assistant's turn, inside of the generation block."
    reason = f"no trained turn ends with a stop token ({_named(tokenizer)}): the model would never stop"
    raise StopTokenUntrained(dataset.path, reason, remedy)


def _named(tokenizer: ChatTokenizer) -> str:
    return ", ".join(sorted(tokenizer.turn_ends[number] for number in tokenizer.stop_ids)) or "none is known"
