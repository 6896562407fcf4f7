"""Records the output of replicas: records update the status and the display, every line goes to a log file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import IO

from finetune_api.resource.status import Status
from finetune_api.runtime import report
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_cli import kubernetes_yaml, planning, printing
from finetune_data import regular
from finetune_plan import statuses

from .display import Display
from .launches import Launch
from .outcome import Outcome
from .processes import OutputLine

LOGS = "logs"
STATUS = "status.yaml"
_MANY = 1_000_000
"""Runs that no folder has seen: names of logs contain the number."""
STATUS_SECONDS = 10.0
"""Interval of writing the status during a run; the operator's is the same."""


def previous_run(output: Path) -> int:
    """Number of the last run in this folder; 0 if there was none, or its status is something else."""
    try:
        found = kubernetes_yaml.value(regular.content(output / STATUS).decode())
    except (OSError, UnicodeDecodeError, kubernetes_yaml.InvalidYaml):
        return 0
    number = found.get("run") if isinstance(found, dict) else None
    return number if isinstance(number, int) and 0 < number < _MANY else 0


class RunRecorder:
    """The log files and the status of one run."""

    def __init__(self, output: Path, status: Status, display: Display) -> None:
        self.output, self.status, self._display = output, status, display
        self._logs: dict[int, IO[str]] = {}
        self._next_write = 0.0

    def open(self, launches: Sequence[Launch]) -> None:
        """Open the log files."""
        (self.output / LOGS).mkdir(parents=True, exist_ok=True)
        for launch in launches:
            self._logs[launch.node] = regular.opened(self.log(launch.name), "a")

    def line(self, line: OutputLine) -> None:
        """Record a line."""
        print(line.text, file=self._logs[line.launch.node], flush=True)
        record = report.parse(line.text) if line.is_stdout else None
        if record is None:
            self._display.line(line.launch.name, line.text)
        elif not isinstance(record, FinalReport):  # the outcome is decided when every replica has ended
            self._display.record(record)
            self.status = statuses.apply_record(record, self.status, planning.timestamp())
            if monotonic() >= self._next_write:
                self.write()

    def end(self, outcome: Outcome) -> None:
        """Write the final status. An output folder that belongs to another job keeps that job's status."""
        now = planning.timestamp()
        if outcome.report:
            self.status = statuses.apply_record(outcome.report, self.status, now)
        else:
            self.status = statuses.failed(self.status, outcome.code, outcome.message, now=now)
        if outcome.code != Exit.OUTPUT_REFUSED:
            self.write()

    def log(self, replica: str) -> Path:
        """The log file of a replica."""
        return self.output / LOGS / f"{replica}.log"

    def write(self) -> None:
        """Write the status atomically."""
        self._next_write = monotonic() + STATUS_SECONDS
        temporary = self.output / f".{STATUS}"
        data = self.status.model_dump(mode="json", exclude_none=True)
        with regular.opened(temporary, "w") as stream:
            stream.write(printing.text(data, "yaml"))
        temporary.replace(self.output / STATUS)

    def close(self) -> None:
        """Close the log files."""
        for log in self._logs.values():
            log.close()
