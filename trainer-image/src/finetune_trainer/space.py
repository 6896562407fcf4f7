"""What a run is going to write, so that a volume without room for it is refused before the first step."""

from __future__ import annotations


def needed(*, there: int, saves: int, kept: int, checkpoint: int, result: int) -> int:
    """Bytes beyond those that are on the volume, at the worst moment.

    `there` checkpoints are on the volume and `saves` are to come. `kept` stay after each, and the oldest is removed
    once the new one is complete; the result is written after the last.
    """
    saving = min(there + saves, max(there, kept) + 1)
    publishing = min(there + saves, kept) if saves else there
    return max((saving - there) * checkpoint, (publishing - there) * checkpoint + result)
