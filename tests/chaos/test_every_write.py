"""Whatever happens at whichever write, a life ends as it would have ended, with one PyTorchJob a run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from chaos.bed import Bed
from chaos.disturbances import DISTURBANCES
from chaos.lives import LIVES
from chaos.rows import NotDisturbed, Outcome, Row, disturbed, places, same

ATTEMPTS = 4
"""Two updates of a status may become one on a busy machine: then there is no such write, or it strikes elsewhere."""


def row_of_life(bed: Bed, folder: Path, row: Row) -> Outcome:
    """The row as its name says it; whatever else it became on the way has to end well too."""
    reference = bed.references[row.life]
    for attempt in range(1, ATTEMPTS + 1):
        lens = DISTURBANCES[row.disturbance](row.at)
        try:
            outcome = disturbed(bed.plane, bed.ledger, folder, row.life, lens, reference)
        except NotDisturbed:
            if attempt == ATTEMPTS:
                raise
            continue
        if places(outcome.writes).get(row.at) == row.write:
            break
        same(outcome, reference)
    return outcome


@pytest.mark.trial(work=row_of_life)
@pytest.mark.timeout(900)
def test_a_disturbed_life_ends_as_the_undisturbed_one(row: Row, outcome: Outcome, bed: Bed) -> None:
    reference = bed.references[row.life]
    assert places(outcome.writes).get(row.at) == row.write, "the disturbance struck where its name says"
    same(outcome, reference)
    assert outcome.codes == ((-signal.SIGKILL, 0) if "killed" in row.disturbance else (0,))


@pytest.mark.parametrize("life", LIVES)
def test_an_undisturbed_life_is_what_its_name_says(bed: Bed, life: str) -> None:
    reference = bed.references[life]
    plain = life.removesuffix("_with_grace")
    names = [f"sample-{n}" for n in range(1, 1 + {"reconsidered": 3, "failed": 2}.get(plain, 1))]
    assert list(reference.created) == names
    assert list(reference.runs) == [f"{sign}{name}" for name in names for sign in "+-"]
    assert reference.left == ()
    assert reference.codes == (0,)
    phases = {"reconsidered": "Succeeded", "failed": "Failed", "deleted": "Starting", "cancelled": "Cancelled",
              "deleted_at_success": "Succeeded", "late": "Failed", "tidied": "Succeeded"}  # fmt: skip
    assert reference.status["phase"] == phases[plain]
    assert len(reference.results) == (plain in ("reconsidered", "deleted_at_success")), "noted on the claim"
    assert reference.status == bed.references[plain].status, "grace changes nothing"
