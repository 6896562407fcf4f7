"""PEFT without bitsandbytes, which it would import, used or not, and with that torch's compiler.

They take a fifth of the CPU time in which a rank starts; four_bits.py imports them where a base is in four bits. The
programs that train (worker.py) and merge (merging.py) import this before anything that imports PEFT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """importlib finds no module of this name meanwhile, unless it is imported already."""
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # the documented way
    try:
        yield
    finally:
        if hidden:
            del sys.modules[name]


with _absent("bitsandbytes"):
    import peft

__all__ = ["peft"]
