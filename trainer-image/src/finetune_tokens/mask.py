"""From spans of characters to target tokens. Pure. Called by `prepare`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from .prepared import Flags
from .spans import Span


def targets(offsets: NDArray[np.int64], spans: Iterable[Span]) -> Flags:
    """bool [tokens]: which tokens lie inside one of `spans`.

    `offsets` is int64 [tokens, 2]: the half-open range of characters each token comes from. A token that
    reaches over the edge of a span is no target: part of it was written by the template or the user, and in use the
    model never emits it, since the prompt ends at that edge. Tokens of no width (a mark for a leading space)
    belong to the text that follows them.
    """
    start, end = offsets[:, 0], offsets[:, 1]
    found = np.zeros(len(offsets), np.bool_)
    for first, last in spans:
        found |= (start >= first) & (end <= last) & (start < last)
    found[:1] = False  # nothing precedes it, so nothing can predict it
    return found


def run_ends(tokens: NDArray[np.int32], flags: Flags) -> NDArray[np.int32]:
    """The last token of each uninterrupted run of targets in one sequence."""
    following = np.append(flags[1:], False)
    ends: NDArray[np.int32] = tokens[flags & ~following]
    return ends
