"""How large a model is by its name, before anything is downloaded: most names say it (Qwen3-32B, Mixtral-8x7B)."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([mb])(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"m": 1e6, "b": 1e9}


def parameters(model: str) -> float | None:
    """The largest number of parameters that the name or path contains; None if it has none.

    Of experts all count: 8x7B is 56e9, which is more than they share, and 30B-A3B is 30e9.
    """
    found = (int(experts or 1) * float(each) * _UNITS[unit.lower()] for experts, each, unit in _SIZE.findall(model))
    return max(found, default=None)
