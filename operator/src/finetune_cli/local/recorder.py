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
STATUS_SECONDS = 10.0
"""Interval of writing the status during a run; the operator's is the same."""
STATUS_BYTES = 1 << 20
"""More than any status has: what is longer is something else, which might not fit into memory."""
MAX_RUN = 10**6
"""More runs than a folder ever sees; the number is a part of the names of replicas and of their log files."""


def previous_run(output: Path) -> int:
    """Number of the last run in this folder; 0 if there was none, or its status is something else."""
    try:
        with regular.opened(output / STATUS, "rb") as stream:
            content = stream.read(STATUS_BYTES + 1)
        found = kubernetes_yaml.value(content.decode()) if len(content) <= STATUS_BYTES else None
    except (OSError, UnicodeDecodeError, kubernetes_yaml.InvalidYaml):
        return 0
    number = found.get("run") if isinstance(found, dict) else None
    return number if type(number) is int and 0 < number <= MAX_RUN else 0


class RunRecorder:
    """The log files and the status of one run."""

    def __init__(self, output: Path, status: Status, display: Display) -> None:
        self.output, self.status, self._display = output, status, display
        self._logs: dict[int, IO[bytes]] = {}
        self._next_write = 0.0

    def open(self, launches: Sequence[Launch]) -> None:
        """Open the log files."""
        (self.output / LOGS).mkdir(parents=True, exist_ok=True)
        for launch in launches:
            self._logs[launch.node] = regular.opened(self.log(launch.name), "ab")

    def line(self, line: OutputLine) -> None:
        """Record a line."""
        log = self._logs[line.launch.node]
        log.write(line.raw + b"\n")
        log.flush()
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
        temporary.unlink(missing_ok=True)  # of a run that was killed, or a link of somebody
        with regular.opened(temporary, "x") as stream:
            stream.write(printing.text(data, "yaml"))
        temporary.replace(self.output / STATUS)

    def close(self) -> None:
        """Close the log files."""
        for log in self._logs.values():
            log.close()
