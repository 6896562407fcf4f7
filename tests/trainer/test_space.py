"""Room that a run needs: what it writes, played through, never takes more."""

from __future__ import annotations

import pytest

from finetune_trainer import space

CHECKPOINT, RESULT = 10, 7


def played(there: int, saves: int, kept: int) -> int:
    """The most bytes on the volume beyond those at the start."""
    on_volume, peak = there, 0
    for _ in range(saves):
        peak = max(peak, (on_volume + 1 - there) * CHECKPOINT)
        on_volume = min(on_volume + 1, kept)
    return max(peak, (on_volume - there) * CHECKPOINT + RESULT)


@pytest.mark.parametrize("there", range(5))
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_it_is_what_the_worst_moment_takes(there: int, kept: int) -> None:
    """Also where more checkpoints are there than stay: the first save removes them."""
    for saves in range(6):
        found = space.needed(there=there, saves=saves, kept=kept, checkpoint=CHECKPOINT, result=RESULT)
        assert found == played(there, saves, kept), saves
