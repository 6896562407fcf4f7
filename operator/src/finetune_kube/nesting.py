"""How deeply the objects of an API server may be nested."""

from __future__ import annotations

import sys

FRAMES = 12_000
"""The API server takes JSON of 10,000 levels. Above that: what the process itself is in the middle of."""


def allow_any_depth() -> None:
    """Let this process read whatever the API server holds.

    At Python's default of 1,000, one deep object in a list or a watch would keep all others from being read. On
    CPython 3.11, which the image has, the limit covers the C code that reads JSON too.
    """
    sys.setrecursionlimit(max(FRAMES, sys.getrecursionlimit()))
