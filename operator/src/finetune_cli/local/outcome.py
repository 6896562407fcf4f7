"""How a run ended: from the exit codes and final reports of its replicas to the replica with the root cause."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time

from pydantic import ValidationError

from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.root_cause import precedence

from .launches import Launch
from .processes import Ended

TERMINATED, KILLED = 128 + signal.SIGTERM, 128 + signal.SIGKILL
SECONDARY = {Exit.STOPPED, Exit.PEER_LOST, TERMINATED}
"""Exit codes of replicas that ended because of another one, or because we stopped them."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    replica: str
    """The replica that decided it."""
    code: int
    report: FinalReport | None
    """Its final report, if it wrote one."""

    @property
    def reason(self) -> str:
        return self.report.reason if self.report else exits.meaning(self.code).reason

    @property
    def message(self) -> str:
        return self.report.message if self.report else exits.meaning(self.code).sentence

    @property
    def remedy(self) -> str:
        """Empty where the message contains it: the trainer's messages do, except those of unknown failures."""
        known = self.report and self.code != Exit.CRASHED
        return "" if known else exits.meaning(self.code).remedy


def outcome(ended: Sequence[Ended], reports: Mapping[int, FinalReport], *, requests: int) -> Outcome:
    """The outcome of a run whose replicas `ended` in this order. Success requires rank 0's own report.

    `requests`: how often we were asked to stop. We forward the first, and kill at the second.
    """
    if all(each.code == Exit.OK for each in ended):
        first = next(each for each in ended if each.launch.node == 0)
        report = reports.get(0)
        return Outcome(first.launch.name, Exit.OK if report else Exit.CRASHED, report)
    failed = [each for each in ended if each.code != Exit.OK]
    root = min(failed, key=lambda e: precedence(e.code, reports.get(e.launch.node), secondary=SECONDARY))
    if requests == 1 and root.code == TERMINATED:  # before the trainer could handle signals
        return Outcome(root.launch.name, Exit.STOPPED, _stopped("The run was stopped before training started."))
    if requests > 1 and root.code == KILLED:
        return Outcome(root.launch.name, Exit.STOPPED, _stopped("The run was ended at once, without a checkpoint."))
    report = reports.get(root.launch.node)
    return Outcome(root.launch.name, root.code, report if report and report.exit_code == root.code else None)


def read_report(launch: Launch) -> FinalReport | None:
    """The final report that a replica wrote as its termination message."""
    try:
        return FinalReport.model_validate_json(launch.report.read_bytes())
    except (OSError, ValidationError):
        return None


def _stopped(message: str) -> FinalReport:
    """For a replica that could not report it."""
    meaning = exits.MEANINGS[Exit.STOPPED]
    return FinalReport(time=time(), exit_code=Exit.STOPPED, reason=meaning.reason, message=message, step=0)
