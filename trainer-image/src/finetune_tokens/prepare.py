"""Turn a dataset into tokens and targets: render, tokenise, mask, truncate, count. Called by the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding

from finetune_api.runtime.choices import OnBadRow
from finetune_data import Dataset, Row
from finetune_data.problems import InvalidRow, Problems

from . import mask, notes, spans
from .chat import ChatTokenizer
from .errors import StopTokenUntrained
from .prepared import Flags, TokenizedDataset, Tokens, concatenate

_CHUNK = 1024
"""Rows that are tokenised together: enough to use all cores, few enough to fit into memory."""


@dataclass
class _Accumulator:
    """Results collected while the dataset is processed."""

    problems: Problems
    sequences: list[tuple[int, Tokens, Flags]] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)
    used: int = 0
    split: int = 0
    truncated: int = 0
    dropped: int = 0


def prepare(
    dataset: Dataset,
    tokenizer: ChatTokenizer,
    sequence_length: int | None,
    on_bad_row: OnBadRow = OnBadRow.REFUSE,
    max_bad_share: float = 0.0,
) -> TokenizedDataset:
    """The tokens and targets of `dataset`. Sequences are truncated to `sequence_length` tokens.

    Raises DatasetRefused if the template or the truncation leaves more rows without a target than the job allows,
    or all of them, and StopTokenUntrained if no trained turn ends with a token at which generation can stop.
    """
    accumulated = _Accumulator(Problems(dataset.problems, dataset.problem_count))
    for chunk in _chunks(dataset.rows):
        _add_rows(chunk, tokenizer, sequence_length, accumulated)
    accumulated.problems.enforce(dataset.path, dataset.row_count, on_bad_row, max_bad_share)
    stops = _trained_stops(dataset, tokenizer, accumulated)
    tokens, targets, offsets, lines = concatenate(accumulated.sequences)
    return TokenizedDataset(
        tokens,
        targets,
        offsets,
        lines,
        rows=dataset.row_count,
        used=accumulated.used,
        refused=accumulated.problems.count,
        truncated=accumulated.truncated,
        problems=accumulated.problems.first,
        stop_ids=stops,
        notes=notes.of(
            dataset, tokenizer, stops, notes.Counts(accumulated.split, accumulated.truncated, accumulated.dropped)
        ),
    )


def _chunks(rows: tuple[Row, ...]) -> Iterator[tuple[Row, ...]]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def _add_rows(rows: tuple[Row, ...], tokenizer: ChatTokenizer, limit: int | None, accumulated: _Accumulator) -> None:
    rendered = _render_rows(rows, tokenizer, accumulated.problems)
    texts = [sequence.text for _, sequences in rendered for sequence in sequences]
    encodings = iter(tokenizer.encode(texts))
    for row, sequences in rendered:
        masked = [_mask_sequence(next(encodings), sequence, limit) for sequence in sequences]
        kept = [(row.line, tokens, targets) for tokens, targets, _ in masked if targets.any()]
        if not kept:
            accumulated.problems.add(row.line, _no_target(limit))
            continue
        accumulated.used += 1
        accumulated.split += len(masked) > 1
        accumulated.dropped += len(masked) - len(kept)
        accumulated.truncated += sum(truncated and bool(targets.any()) for _, targets, truncated in masked)
        accumulated.sequences += kept
        for _, tokens, targets in kept:
            accumulated.ends.update(mask.run_ends(tokens, targets).tolist())


def _render_rows(
    rows: tuple[Row, ...], tokenizer: ChatTokenizer, problems: Problems
) -> list[tuple[Row, list[spans.Rendered]]]:
    turn_ends = tuple(tokenizer.turn_ends.values())
    found = []
    for row in rows:
        try:
            found.append((row, spans.sequences(row, tokenizer.template_for(row), turn_ends)))
        except InvalidRow as problem:
            problems.add(row.line, problem)
    return found


def _mask_sequence(encoding: Encoding, sequence: spans.Rendered, limit: int | None) -> tuple[Tokens, Flags, bool]:
    """Tokens and targets of one text, and whether it was truncated."""
    tokens = np.array(encoding.ids, np.int32)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    targets = mask.targets(offsets, sequence.spans)
    truncated = limit is not None and len(tokens) > limit
    return tokens[:limit], targets[:limit], truncated


def _no_target(limit: int | None) -> InvalidRow:
    if limit is None:
        return InvalidRow(
            "no trainable token: every token of the answer also covers template text; separate the answer from it"
        )
    reason = f"no trainable token: the answer starts beyond the sequence length of {limit} tokens"
    return InvalidRow(f"{reason}; shorten the row or raise sequence_length")


def _trained_stops(dataset: Dataset, tokenizer: ChatTokenizer, accumulated: _Accumulator) -> tuple[int, ...]:
    """The tokens that end trained turns and at which generation can stop."""
    stops = tuple(sorted(accumulated.ends & tokenizer.turn_ends.keys()))
    if stops:
        return stops
    if accumulated.truncated == len(accumulated.sequences):
        remedy = "Every row is truncated: raise sequence_length, or shorten the rows."
    else:
        remedy = "Change the chat template to write it after each assistant message, inside the generation block."
    reason = f"no trained turn ends with a stop token ({_stop_tokens(tokenizer)}): the model would not learn to stop"
    raise StopTokenUntrained(dataset.path, reason, remedy)


def _stop_tokens(tokenizer: ChatTokenizer) -> str:
    return ", ".join(sorted(tokenizer.turn_ends[number] for number in tokenizer.stop_ids)) or "none is configured"
