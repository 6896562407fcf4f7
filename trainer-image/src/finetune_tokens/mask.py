"""From spans of characters to target tokens. Pure. Called by `prepare`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .prepared import Flags
from .spans import Span


def targets(offsets: NDArray[np.int64], spans: Iterable[Span]) -> Flags:
    """bool [tokens]: which tokens lie inside one of `spans`.

    `offsets` is int64 [tokens, 2]: the half-open range of characters of each token. A token that crosses the
    boundary of a span is not a target: part of it is template or user text, and at inference the model never emits
    it, since the prompt ends at that boundary. Zero-width tokens (a marker for a leading space) are not targets.
    """
    start, end = offsets[:, 0], offsets[:, 1]
    found = np.zeros(len(offsets), np.bool_)
    for first, last in spans:
        found |= (start >= first) & (end <= last) & (start < last)
    found[:1] = False  # nothing precedes the first token, so it cannot be predicted
    return found


def run_ends(tokens: NDArray[np.int32], flags: Flags) -> NDArray[np.int32]:
    """The last token of each uninterrupted run of targets in one sequence."""
    following = np.append(flags[1:], False)
    ends: NDArray[np.int32] = tokens[flags & ~following]
    return ends
