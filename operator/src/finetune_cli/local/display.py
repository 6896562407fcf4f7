"""What a person sees while a run is under way: a bar on a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from finetune_api.runtime.report import EvaluationRecord, ProgressRecord, Record

from . import words


class Display(Protocol):
    def record(self, record: Record) -> None:
        """A record of rank 0."""

    def text(self, replica: str, text: str) -> None:
        """Any other line of a replica."""

    def say(self, sentence: str) -> None:
        """A word of our own."""

    def close(self) -> None:
        """The run has ended."""


def choose(*, quiet: bool) -> Display:
    if quiet:
        return Silent()
    return Bar(Console(stderr=True, highlight=False)) if sys.stderr.isatty() else Lines()


class Silent:
    def record(self, record: Record) -> None:
        pass

    def text(self, replica: str, text: str) -> None:
        pass

    def say(self, sentence: str) -> None:
        click.echo(sentence, err=True)

    def close(self) -> None:
        pass


class Lines(Silent):
    """One line a record; the job's logging_steps say how many there are."""

    def record(self, record: Record) -> None:
        click.echo(words.line(record), err=True)

    def text(self, replica: str, text: str) -> None:
        click.echo(f"[{replica}] {text}", err=True)


class Bar:
    """Progress records move a bar; everything else scrolls above it. The console follows NO_COLOR by itself."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._eval = ""

    def record(self, record: Record) -> None:
        if isinstance(record, ProgressRecord):
            self._move(record)
            return
        if isinstance(record, EvaluationRecord):
            self._eval = f"  eval {words.number(record.loss)}"
        self.say(words.line(record))

    def text(self, replica: str, text: str) -> None:
        self._progress.console.print(Text(f"[{replica}] {text}", style="dim"))

    def say(self, sentence: str) -> None:
        self._progress.console.print(Text(sentence))

    def close(self) -> None:
        self._progress.stop()

    def _move(self, record: ProgressRecord) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=record.total_steps)
        rest = words.line(record).partition("  ")[2]  # the step stands left of the bar
        self._progress.update(self._task, completed=record.step, description=f"{rest}{self._eval}")
