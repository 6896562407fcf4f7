"""Which tokens a span of characters makes targets."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_tokens import mask

CASES: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int]], str]] = {
    "tokens inside a span are targets": ([(0, 2), (2, 4), (4, 6), (6, 8)], [(2, 6)], ".xx."),
    "a token that begins before the span is none": ([(0, 2), (2, 4), (4, 6)], [(3, 6)], "..x"),
    "a token that ends after the span is none": ([(0, 2), (2, 4), (4, 6)], [(2, 5)], ".x."),
    "several spans": ([(0, 1), (1, 2), (2, 3), (3, 4)], [(1, 2), (3, 4)], ".x.x"),
    "parts of one character stand together": ([(0, 1), (1, 2), (1, 2), (2, 3)], [(1, 2)], ".xx."),
    "a token without width belongs to what follows": ([(0, 2), (2, 2), (2, 4), (4, 4)], [(2, 4)], ".xx."),
    "the first token cannot be predicted": ([(0, 2), (2, 4)], [(0, 4)], ".x"),
    "no span, no target": ([(0, 2), (2, 4)], [], ".."),
    "no token, no target": ([], [(0, 4)], ""),
}


@pytest.mark.parametrize(("offsets", "spans", "expected"), CASES.values(), ids=CASES.keys())
def test_targets(offsets: list[tuple[int, int]], spans: list[tuple[int, int]], expected: str) -> None:
    found = mask.targets(np.array(offsets, np.int64).reshape(-1, 2), spans)
    assert "".join("x" if flag else "." for flag in found) == expected


def test_the_ends_of_runs_of_targets() -> None:
    tokens = np.array([1, 2, 3, 4, 5, 6], np.int32)
    flags = np.array([False, True, True, False, True, True])
    assert mask.run_ends(tokens, flags).tolist() == [3, 6]
