"""Bad rows: how they are reported and counted, and when they fail a run.

Used while reading a file and while applying a chat template.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.runtime.choices import OnBadRow

MAX_LISTED = 20
"""Bad rows listed in a message; the rest are counted."""


class InvalidRow(ValueError):
    """One row cannot be used. Names the path in the row, the reason and the remedy, without the line number."""


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A bad row and the reason."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


class DatasetRefused(ValueError):
    """The dataset cannot be trained on.

    `problems` are the first bad rows; `problem_count` counts all of them.
    """

    def __init__(
        self, path: str, reason: str, remedy: str, problems: tuple[RowProblem, ...] = (), problem_count: int = 0
    ) -> None:
        self.path, self.reason, self.remedy = path, reason, remedy
        self.problems, self.problem_count = problems, problem_count
        lines = [f"{path}: {reason}", *(f"  {problem}" for problem in problems)]
        if problem_count > len(problems):
            lines.append(f"  and {problem_count - len(problems)} more")
        super().__init__("\n".join([*lines, remedy]))


@dataclass
class Problems:
    """Collects the first bad rows and counts all."""

    first: tuple[RowProblem, ...] = ()
    count: int = 0

    def add(self, line: int, reason: InvalidRow) -> None:
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first += (RowProblem(line, str(reason)),)

    def enforce(self, path: str, row_count: int, on_bad_row: OnBadRow, max_bad_share: float) -> None:
        """Raises DatasetRefused if there are more bad rows among `row_count` than the job allows."""
        refusal = self._refusal(row_count, on_bad_row, max_bad_share)
        if refusal:
            raise DatasetRefused(path, *refusal, self.first, self.count)

    def _refusal(self, row_count: int, on_bad_row: OnBadRow, max_bad_share: float) -> tuple[str, str] | None:
        bad = f"{self.count} of {row_count} rows {'is' if self.count == 1 else 'are'} bad"
        if not self.count:
            return None
        if on_bad_row is OnBadRow.REFUSE:
            return bad, "Fix the rows, or set data.on_bad_row: skip to train without them."
        if self.count == row_count:
            return f"all of the {row_count} rows are bad: no row is left to train on", "Fix the rows."
        if self.count > max_bad_share * row_count:
            allowed = f"{bad}, more than data.max_bad_share: {max_bad_share:g} allows"
            return allowed, "Fix the rows, or raise data.max_bad_share."
        return None
