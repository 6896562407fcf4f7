"""A small line plot in Unicode characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of the eight dots of a braille character (Unicode 0x2800), by row and column."""
LABEL = 9


def plot(points: Sequence[Point], *, width: int = 60, height: int = 8) -> str:
    """The (x, y) points joined by lines, with the y range at the left and the x range below.

    Points that are not finite are skipped. Returns an empty string for fewer than two points.
    """
    finite = sorted(p for p in points if all(map(math.isfinite, p)))
    if len(finite) < 2:
        return ""
    (left, _), (right, _) = finite[0], finite[-1]
    low, high = min(y for _, y in finite), max(y for _, y in finite)
    columns, rows = 2 * width, 4 * height
    dots = [(_scaled(x, left, right, columns), rows - 1 - _scaled(y, low, high, rows)) for x, y in finite]
    cells = [[0] * width for _ in range(height)]
    for start, end in pairwise(dots):
        for x, y in _line(start, end):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    labels = [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]
    lines = [f"{label:>{LABEL}} {_braille(row)}".rstrip() for label, row in zip(labels, cells, strict=True)]
    return "\n".join([*lines, f"{'':{LABEL}} {left:<{width // 2}g}{right:>{width - width // 2}g}"])


def _scaled(value: float, low: float, high: float, steps: int) -> int:
    return round((value - low) / (high - low) * (steps - 1)) if high > low else (steps - 1) // 2


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from start to end, both included."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    across, down = (end[0] - start[0]) / steps, (end[1] - start[1]) / steps
    return [(round(start[0] + across * i), round(start[1] + down * i)) for i in range(steps + 1)]


def _braille(row: list[int]) -> str:
    return "".join(chr(0x2800 + bits) if bits else " " for bits in row)
