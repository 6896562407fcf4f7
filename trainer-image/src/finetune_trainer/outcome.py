"""The final report of a node: pure, from the exit codes of its ranks and the reports they wrote.

Called by the launcher. The cause is the earliest failure. A rank that only lost a peer is the cause if nothing
else failed on this node: then the real cause is on another node, whose launcher reports it.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_api.runtime.exits import MEANINGS, Exit, meaning
from finetune_api.runtime.report import Cause, FinalReport
from finetune_api.runtime.root_cause import precedence

if TYPE_CHECKING:
    from .stall import Stall, StalledRank


@dataclass(frozen=True)
class RankExit:
    """The process of a rank has exited."""

    rank: int
    code: int
    """As in a shell: 128 + number for a signal."""
    time: float
    """Unix time in seconds."""


@dataclass
class NodeOutcome:
    """What the launcher has observed of the ranks of its node."""

    exits: list[RankExit] = field(default_factory=list)
    stop_signals: int = 0
    """Signals that asked the launcher to stop."""
    killed_at: float = math.inf
    """When the launcher killed the remaining ranks; exits from then on are not a cause."""
    stall: Stall | None = None
    """Why the launcher killed them, if they stood still."""
    stalled: Mapping[int, StalledRank] = field(default_factory=dict)
    """The ranks that were running then."""

    @property
    def failed(self) -> bool:
        return any(each.code for each in self.exits)

    @property
    def killed(self) -> bool:
        return self.killed_at < math.inf


def node_report(outcome: NodeOutcome, rank_reports: Mapping[int, FinalReport], node: int) -> FinalReport:
    """The report of `node`. `rank_reports` has the reports of those ranks that wrote one."""
    reports = [
        report
        for rank_exit in sorted(outcome.exits, key=lambda rank_exit: rank_exit.rank)
        if (report := rank_reports.get(rank_exit.rank) or _without_report(rank_exit, outcome, node)) is not None
    ]
    failed = [report for report in reports if report.cause is not None]
    if failed:
        return min(failed, key=lambda report: precedence(report.exit_code, report))
    return reports[0] if reports else stopped(twice=outcome.stop_signals > 1)


def failure(code: int, message: str, cause: Cause, step: int = 0) -> FinalReport:
    """The report of a failure."""
    return FinalReport(
        time=time.time(), exit_code=code, reason=meaning(code).reason, message=message, step=step, cause=cause
    )


def stopped(*, twice: bool = False) -> FinalReport:
    """The report of a run that was stopped before any rank wrote a report."""
    code = 128 + signal.SIGTERM if twice else Exit.STOPPED
    message = (
        "received a second stop signal; the run was killed without saving a checkpoint"
        if twice
        else "stopped before training started"
    )
    reason = MEANINGS[Exit.STOPPED].reason
    return FinalReport(time=time.time(), exit_code=code, reason=reason, message=message, step=0)


def _without_report(rank_exit: RankExit, outcome: NodeOutcome, node: int) -> FinalReport | None:
    """The report for a rank that wrote none; None if the launcher stopped or killed it."""
    stopped_by_us = outcome.stop_signals and rank_exit.code == 128 + signal.SIGTERM
    if stopped_by_us or rank_exit.time >= outcome.killed_at:
        return None
    code = rank_exit.code or Exit.CRASHED  # to exit without a report is a failure, even with code 0
    known = meaning(code)
    message = f"rank {rank_exit.rank} on node {node} exited without a report. {known.sentence} {known.remedy}"
    return failure(code, message, Cause(rank=rank_exit.rank, node=node, time=rank_exit.time, error=message))
