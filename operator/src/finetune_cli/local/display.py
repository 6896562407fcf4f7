"""Progress of a run for people: a bar on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from finetune_api.runtime.report import EvaluationRecord, ProgressRecord, Record
from finetune_cli.errors import KEPT, printable

from .format_record import format_number, format_record


class Display:
    """Shows messages and errors only."""

    def record(self, record: Record) -> None:
        """A record of rank 0."""

    def line(self, replica: str, text: str) -> None:
        """Any other line of a replica."""

    def message(self, text: str) -> None:
        """A message of the command line itself."""
        click.echo(text, err=True)

    def close(self) -> None:
        """Called when the run has ended."""


def choose(*, quiet: bool) -> Display:
    """The display that fits standard error."""
    if quiet:
        return Display()
    return Bar(Console(stderr=True, highlight=False)) if sys.stderr.isatty() else Lines()


class Lines(Display):
    """One line per record; the job's logging_steps set how many records there are."""

    def record(self, record: Record) -> None:
        click.echo(format_record(record), err=True)

    def line(self, replica: str, text: str) -> None:
        click.echo(_line(replica, text), err=True)


class Bar(Display):
    """Progress records advance a bar; everything else scrolls above it. rich handles NO_COLOR."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._eval = ""

    def record(self, record: Record) -> None:
        if isinstance(record, ProgressRecord):
            self._advance(record)
            return
        if isinstance(record, EvaluationRecord):
            self._eval = f"  eval {format_number(record.loss)}"
        self.message(format_record(record))

    def line(self, replica: str, text: str) -> None:
        self._progress.console.print(Text(_line(replica, text), style="dim"))

    def message(self, text: str) -> None:
        self._progress.console.print(Text(text))

    def close(self) -> None:
        self._progress.stop()

    def _advance(self, record: ProgressRecord) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=record.total_steps)
        rest = format_record(record).partition("  ")[2]  # the step is shown left of the bar
        self._progress.update(self._task, completed=record.step, description=f"{rest}{self._eval}")


def _line(replica: str, text: str) -> str:
    """A line of a replica, which may hold anything, and must not control the terminal."""
    return f"[{replica}] {printable(text, KEPT)}"
