"""How deep a job may be nested. Parsers and validation recurse; libyaml's C code even crashes without an error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 100
"""Several times the depth of the deepest key of a job; tags may have any shape."""
MESSAGE = f"nested more than {MAX_DEPTH} levels deep"


def too_deep(value: Any) -> bool:
    """Whether maps and lists are nested deeper than MAX_DEPTH. Iterative, for values without shared parts."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
