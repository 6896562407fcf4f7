"""When a node stands still, and what its report says then: pure, from the heartbeats of its ranks.

The ranks of a run wait for each other, so one that hangs silences all of them. A slow step is no stall: what is
allowed follows from the longest silence between two heartbeats so far, and is never less than the floor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.report import Cause, FinalReport

from .heartbeat import RankProgress
from .outcome import failure

FACTOR = 5
"""A silence may be this many times as long as the longest one before it."""
OUTSIDE_STEPS = 6
"""Floors that are allowed before the first step is done and while something is saved: nodes wait for rank 0 then."""
LONGEST_TICK = 1.0
"""Seconds between two observations, or fewer where less is allowed."""
STATES = {
    "T": "is stopped by a signal",
    "t": "is held by a debugger",
    "D": "waits in the kernel for a volume or a device",
}
"""States of a process, as in proc(5), in which it does not answer."""


@dataclass(frozen=True)
class Stall:
    """No rank of the node has made progress for longer than allowed. The tuples are in order of ranks."""

    allowed: float
    longest: float
    """Longest silence before, in seconds."""
    progress: tuple[RankProgress, ...]
    silent: tuple[float, ...]
    """Seconds since the last heartbeat of each rank."""


class StalledRank(NamedTuple):
    """What is found out about the process of a rank."""

    state: str
    """As in proc(5); empty if unknown."""
    frame: str
    """Where it is: the innermost frame of its stack; empty if unknown."""


class StallRule:
    """Adds up the silence of each rank over observations, which are made every `tick` seconds."""

    def __init__(self, floor: float) -> None:
        self.tick = min(LONGEST_TICK, floor / 20)
        self._floor = floor
        self._longest = 0.0
        self._progress: tuple[RankProgress, ...] = ()
        self._silent: tuple[float, ...] = ()

    def observe(self, progress: tuple[RankProgress, ...], seconds: float) -> Stall | None:
        """The heartbeats `seconds` after the previous observation; a Stall if the silence is too long.

        Of a late observation only two ticks count: the ranks were suspended when the launcher was.
        """
        seconds = min(seconds, 2 * self.tick)
        before = self._progress or progress
        silence = min(self._silent, default=0.0) + seconds
        if progress != before and _stepping(before):
            self._longest = max(self._longest, silence)
        quiet = self._silent or (0.0,) * len(progress)
        self._silent = tuple(
            each + seconds if new == old else 0.0 for each, new, old in zip(quiet, progress, before, strict=True)
        )
        self._progress = progress
        allowed = max(self._floor * (1 if _stepping(progress) else OUTSIDE_STEPS), FACTOR * self._longest)
        return Stall(allowed, self._longest, progress, self._silent) if min(self._silent) > allowed else None


def report(stall: Stall, node: int, ranks: Mapping[int, StalledRank]) -> FinalReport:
    """The report of a node that was killed for `stall`, with the `ranks` that were running then.

    Its cause is a rank whose process does not answer, else one that is behind the others. The time is that of its
    last heartbeat, so that of several nodes the one that stood still first has the root cause.
    """
    local = {rank: rank - node * len(stall.progress) for rank in ranks}
    points = {rank: (stall.progress[i].step, stall.progress[i].position) for rank, i in local.items()}
    behind = [rank for rank, point in points.items() if point == min(points.values())]
    blamed = [rank for rank, each in ranks.items() if each.state in STATES] or behind
    step = points[blamed[0]][0]
    message = (
        f"No rank of node {node} made progress for {min(stall.silent):.0f} s {_when(stall, step)}; "
        f"{stall.allowed:.0f} s are allowed{_reason(stall)}. {_blame(blamed, ranks)} {MEANINGS[Exit.STALLED].remedy}"
    )
    since = time.time() - stall.silent[local[blamed[0]]]
    return failure(Exit.STALLED, message, Cause(rank=blamed[0], node=node, time=since, error=message), step)


def _when(stall: Stall, step: int) -> str:
    return f"after step {step}" if _stepping(stall.progress) else f"while it started or saved (after step {step})"


def _reason(stall: Stall) -> str:
    grown = stall.allowed == FACTOR * stall.longest
    return f", {FACTOR} times the longest pause before" if grown else ""


def _blame(blamed: Sequence[int], ranks: Mapping[int, StalledRank]) -> str:
    first, names = ranks[blamed[0]], ", ".join(map(str, blamed))
    if first.state in STATES:
        return " ".join(f"Rank {rank} {STATES[ranks[rank].state]}." for rank in blamed)
    behind = "None is behind the others." if len(blamed) == len(ranks) else f"Behind the others: rank {names}."
    return f"{behind} Rank {blamed[0]} is in {first.frame}." if first.frame else behind


def _stepping(progress: Sequence[RankProgress]) -> bool:
    """Whether any rank is in a step: it waits for those that are not."""
    return any(each.stepping for each in progress)
