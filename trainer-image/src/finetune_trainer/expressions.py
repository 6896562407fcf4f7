"""Regular expressions that anybody may have written, in an adapter's file or in a job, matched in bounded time.

Some take longer than any run for a name of a hundred letters, and Python's own module cannot be interrupted in them.
"""

from __future__ import annotations

import time

import regex  # type: ignore[import-untyped]

_LIMIT_S = 60.0
"""For all that is matched while one adapter is read: usual ones of every layer take a second."""


class Expressions:
    """Matches until its time is used up."""

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self._left = limit_s

    def matches(self, expression: str, name: str) -> bool:
        """Whether all of `name` does. Raises ValueError for what is no expression, or takes too long."""
        began = time.monotonic()
        try:
            return regex.fullmatch(expression, name, timeout=max(self._left, 0.001)) is not None
        except TimeoutError:
            raise ValueError("it takes too long to match with the names of layers") from None
        except (regex.error, OverflowError, RecursionError) as error:
            raise ValueError(str(error) or type(error).__name__) from error
        finally:
            self._left -= time.monotonic() - began
