"""Which report a node ends with: pure, from how its ranks ended and what they left behind.

Called by the launcher. The cause is the failure that came first; a rank that only lost a peer is a cause if
nothing else failed here: then the cause is on another node, whose launcher reports it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.runtime.exits import MEANINGS, Exit, meaning
from finetune_api.runtime.report import Cause, FinalReport


@dataclass(frozen=True)
class Exited:
    """A rank's process is over."""

    rank: int
    code: int
    """As a shell shows it: 128 + number for a signal."""
    time: float
    """Unix time in seconds."""


@dataclass
class Watched:
    """What the launcher has seen of the ranks of its node."""

    exits: list[Exited] = field(default_factory=list)
    asked: int = 0
    """Signals that asked the launcher to stop."""
    ended: float = math.inf
    """When the launcher ended the ranks that were left; what happens to them then is no cause."""


def judge(watched: Watched, endings: Mapping[int, FinalReport], node: int) -> FinalReport:
    """The report of `node`. `endings` has what each rank left, of those that lived to leave something."""
    reports = [
        report
        for exited in sorted(watched.exits, key=lambda exited: exited.rank)
        if (report := endings.get(exited.rank) or _silent(exited, watched, node)) is not None
    ]
    failed = [(report.cause, report) for report in reports if report.cause is not None]
    if failed:
        return min(failed, key=lambda pair: _precedence(*pair))[1]
    return reports[0] if reports else stopped(twice=watched.asked > 1)


def failure(code: int, message: str, cause: Cause, step: int = 0) -> FinalReport:
    """The report of a failure."""
    return FinalReport(
        time=time.time(), exit_code=code, reason=meaning(code).reason, message=message, step=step, cause=cause
    )


def stopped(*, twice: bool = False) -> FinalReport:
    """The report of a run that was stopped before its ranks could say anything."""
    code = 128 + signal.SIGTERM if twice else Exit.STOPPED
    message = "asked to stop twice, so the run ended without a checkpoint" if twice else "stopped before it began"
    reason = MEANINGS[Exit.STOPPED].reason
    return FinalReport(time=time.time(), exit_code=code, reason=reason, message=message, step=0)


def _silent(exited: Exited, watched: Watched, node: int) -> FinalReport | None:
    """What is known of a rank that left nothing; None if it ended because we wanted it to."""
    asked_to = watched.asked and exited.code == 128 + signal.SIGTERM
    if asked_to or exited.time >= watched.ended:
        return None
    code = exited.code or Exit.CRASHED  # an end without a report is none, whatever the code says
    known = meaning(code)
    message = f"rank {exited.rank} on node {node} ended without a report. {known.sentence} {known.remedy}"
    return failure(code, message, Cause(rank=exited.rank, node=node, time=exited.time, error=message))


def _precedence(cause: Cause, report: FinalReport) -> tuple[bool, float]:
    return report.exit_code == Exit.PEER_LOST, cause.time
