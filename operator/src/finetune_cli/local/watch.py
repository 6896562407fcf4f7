"""What replicas say, sorted: records to the status and the display, every line to a log file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TextIO

from finetune_api.resource.status import Status
from finetune_api.runtime import report
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_cli import kubernetes_yaml, planning, printing
from finetune_plan import statuses

from .cause import Ending
from .display import Display
from .launches import Launch
from .processes import Line

LOGS = "logs"
STATUS = "status.yaml"
STATUS_SECONDS = 10.0
"""Between two writings of the status while the run goes on: as often as the operator looks at a job."""


def previous_run(output: Path) -> int:
    """Number of the last run in this folder; 0 if there was none."""
    try:
        found = kubernetes_yaml.value((output / STATUS).read_text(encoding="utf-8"))
    except (OSError, kubernetes_yaml.Malformed):
        return 0
    number = found.get("run") if isinstance(found, dict) else None
    return number if isinstance(number, int) else 0


class Watch:
    """The log files and the status of one run."""

    def __init__(self, output: Path, status: Status, display: Display) -> None:
        self.output, self.status, self._display = output, status, display
        self._logs: dict[int, TextIO] = {}
        self._due = 0.0

    def open(self, launches: Sequence[Launch]) -> None:
        (self.output / LOGS).mkdir(parents=True, exist_ok=True)
        for launch in launches:
            self._logs[launch.node] = self.log(launch.name).open("a", encoding="utf-8")

    def line(self, line: Line) -> None:
        print(line.text, file=self._logs[line.launch.node], flush=True)
        record = report.parse(line.text) if line.out else None
        if record is None:
            self._display.text(line.launch.name, line.text)
        elif not isinstance(record, FinalReport):  # how it ended is judged when every replica has ended
            self._display.record(record)
            self.status = statuses.apply_record(record, self.status, planning.now())
            if monotonic() >= self._due:
                self.write()

    def end(self, ending: Ending) -> None:
        """The last status. A folder that holds another job's work keeps that job's."""
        now = planning.now()
        if ending.report:
            self.status = statuses.apply_record(ending.report, self.status, now)
        else:
            self.status = statuses.failed(self.status, ending.code, ending.message, now=now)
        if ending.code != Exit.OUTPUT_REFUSED:
            self.write()

    def log(self, replica: str) -> Path:
        return self.output / LOGS / f"{replica}.log"

    def write(self) -> None:
        """Write the status, so that a reader sees the old one or the new one."""
        self._due = monotonic() + STATUS_SECONDS
        temporary = self.output / f".{STATUS}"
        data = self.status.model_dump(mode="json", exclude_none=True)
        temporary.write_text(printing.text(data, "yaml"), encoding="utf-8")
        temporary.replace(self.output / STATUS)

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
