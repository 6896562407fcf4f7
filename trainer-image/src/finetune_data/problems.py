"""Bad rows: how they are named, counted, and when they end a run.

Used wherever a row can turn out bad: while reading a file, and while applying a chat template to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.runtime.choices import OnBadRow

SHOWN = 20
"""Bad rows named in a message; the rest are counted. More would hide the first, which is read first."""


class BadRow(ValueError):
    """One row cannot be used. Says the place inside the row, the reason and the remedy, without the line."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A bad row and why it is bad."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class DatasetRefused(ValueError):
    """The dataset cannot be trained on.

    `remedy` says what to do; `problems` are the first bad rows and `problem_count` counts them all.
    """

    def __init__(
        self, path: str, reason: str, remedy: str, problems: tuple[Problem, ...] = (), problem_count: int = 0
    ) -> None:
        self.path, self.reason, self.remedy = path, reason, remedy
        self.problems, self.problem_count = problems, problem_count
        lines = [f"{path}: {reason}", *(f"  {problem}" for problem in problems)]
        if problem_count > len(problems):
            lines.append(f"  and {problem_count - len(problems)} more")
        super().__init__("\n".join([*lines, remedy]))


@dataclass
class Problems:
    """A collection that keeps the first bad rows and counts the others."""

    shown: tuple[Problem, ...] = ()
    count: int = 0

    def add(self, line: int, reason: BadRow) -> None:
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown += (Problem(line, str(reason)),)

    def judge(self, path: str, rows_seen: int, on_bad_row: OnBadRow, max_bad_share: float) -> None:
        """Raises DatasetRefused if these are more bad rows than the job allows among `rows_seen`."""
        reason = self._verdict(rows_seen, on_bad_row, max_bad_share)
        if reason:
            raise DatasetRefused(path, *reason, self.shown, self.count)

    def _verdict(self, rows_seen: int, on_bad_row: OnBadRow, max_bad_share: float) -> tuple[str, str] | None:
        bad = f"{self.count} of {rows_seen} rows {'is' if self.count == 1 else 'are'} bad"
        if not self.count:
            return None
        if on_bad_row is OnBadRow.REFUSE:
            return bad, "Correct the rows, or set data.on_bad_row: skip to train without them."
        if self.count == rows_seen:
            return f"every one of {rows_seen} rows is bad: nothing is left to train on", "Correct the rows."
        if self.count > max_bad_share * rows_seen:
            allowed = f"{bad}, more than data.max_bad_share: {max_bad_share:g} allows"
            return allowed, "Correct the rows, or raise data.max_bad_share."
        return None
