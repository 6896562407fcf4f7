"""What the records of an output folder say of the runs that wrote there, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.runtime import report
from finetune_api.runtime.protocol import RECORDS
from finetune_api.runtime.report import CheckpointRecord, ProgressRecord, ResumeRecord


@dataclass
class Run:
    """Records from the start of a trainer to its end."""

    resumed: int = 0
    """Step of the checkpoint from which it went on; 0 if it began from the start."""
    steps: list[int] = field(default_factory=list)
    """Those that it did, in their order."""
    losses: dict[int, float | None] = field(default_factory=dict)
    """Of these steps."""
    saved: int = 0
    """Step of its last checkpoint."""

    def add(self, record: ProgressRecord | CheckpointRecord) -> None:
        if isinstance(record, CheckpointRecord):
            self.saved = record.step
        else:
            self.steps.append(record.step)
            self.losses[record.step] = record.loss


def runs(output: Path) -> list[Run]:
    """Every run after the first begins with a record of its resumption."""
    found = [Run()]
    for line in (output / RECORDS).read_text().splitlines():
        record = report.parse(line)
        if isinstance(record, ResumeRecord):
            found.append(Run(resumed=record.step))
        elif isinstance(record, ProgressRecord | CheckpointRecord):
            found[-1].add(record)
    return found
