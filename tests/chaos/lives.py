"""Lives of a job as its owner and its nodes play them; the operator and the Training Operator do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finetune_api.runtime.exits import Exit
from operating.team import Team


def reconsidered(team: Team) -> None:
    """Suspended as soon as it has pods, resumed at once, restarted after a worker's crash, successful.

    Its result is noted on the claim that it lies on.
    """
    team.claim("models")
    team.submit()
    team.until_run("sample-1")
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    team.edit({"suspend": False})
    team.start("sample-2")
    team.end("sample-2-worker-1", Exit.CRASHED, "boom")
    team.start("sample-3")
    team.end("sample-3-worker-0")


def failed(team: Team) -> None:
    """Suspended while it runs, resumed, ended by a failure that would repeat itself."""
    team.submit()
    team.start("sample-1")
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    team.until_gone(team.runs)
    team.edit({"suspend": False})
    team.start("sample-2")
    team.end("sample-2-worker-1", Exit.DATA_REFUSED, "Line 3 is no JSON.")


def deleted(team: Team) -> None:
    """Deleted while it runs, by what follows every life here."""
    team.submit()
    team.start("sample-1")


LIVES: Mapping[str, Callable[[Team], None]] = {f.__name__: f for f in (reconsidered, failed, deleted)}
