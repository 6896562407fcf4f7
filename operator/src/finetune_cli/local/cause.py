"""Why a run ended as it did: the failure that came first, not the replicas that fell over it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time

from pydantic import ValidationError

from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport

from .launches import Launch
from .processes import Ended

TERMINATED = 128 + signal.SIGTERM
FOLLOWERS = {Exit.STOPPED, Exit.PEER_LOST, TERMINATED}
"""How a replica ends because of another one, or because we ended it."""


@dataclass(frozen=True)
class Ending:
    """How the run ended."""

    replica: str
    """The replica that decided."""
    code: int
    report: FinalReport | None
    """Its own words, if it came to that."""

    @property
    def reason(self) -> str:
        return self.report.reason if self.report else exits.meaning(self.code).reason

    @property
    def message(self) -> str:
        return self.report.message if self.report else exits.meaning(self.code).sentence

    @property
    def remedy(self) -> str:
        """Nothing where the message has it: the trainer's own words do, unless it has no name for the failure."""
        named = self.report and self.code != Exit.CRASHED
        return "" if named else exits.meaning(self.code).remedy


def ending(ended: Sequence[Ended], reports: Mapping[int, FinalReport], *, stopped: bool) -> Ending:
    """The ending of a run whose replicas `ended` in this order. Success needs rank 0's own report.

    `stopped`: we have passed on a request to stop, and have not killed.
    """
    if all(each.code == Exit.OK for each in ended):
        first = next(each for each in ended if each.launch.node == 0)
        report = reports.get(0)
        return Ending(first.launch.name, Exit.OK if report else Exit.CRASHED, report)
    failed = [each for each in ended if each.code != Exit.OK]
    candidates = [each for each in failed if each.code not in FOLLOWERS] or failed
    root = min(candidates, key=lambda each: _time(reports.get(each.launch.node)))
    if stopped and root.code == TERMINATED:
        return Ending(root.launch.name, Exit.STOPPED, _early())
    report = reports.get(root.launch.node)
    return Ending(root.launch.name, root.code, report if report and report.exit_code == root.code else None)


def _early() -> FinalReport:
    """A request to stop that came before the trainer could hear it."""
    meaning = exits.MEANINGS[Exit.STOPPED]
    message = "The run was asked to stop before it had begun."
    return FinalReport(time=time(), exit_code=Exit.STOPPED, reason=meaning.reason, message=message, step=0)


def read_report(launch: Launch) -> FinalReport | None:
    """What a replica left as its termination message."""
    try:
        return FinalReport.model_validate_json(launch.report.read_bytes())
    except (OSError, ValidationError):
        return None


def _time(report: FinalReport | None) -> float:
    """A replica that left no report was cut down: it came first."""
    return report.time if report else 0.0
