"""Show what of a sequence is trained, as segments of text. Called by the CLI."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .chat import ChatTokenizer
from .prepared import Prepared


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens that are all trained or all not."""

    text: str
    trained: bool


def preview(prepared: Prepared, tokenizer: ChatTokenizer, i: int) -> list[Segment]:
    """Sequence `i` as segments, in order."""
    tokens, targets = prepared.sequence(i)
    edges = np.flatnonzero(np.diff(targets)) + 1
    runs = zip(np.split(tokens, edges), np.split(targets, edges), strict=True)
    return [Segment(tokenizer.decode(part), bool(flags[0])) for part, flags in runs]
