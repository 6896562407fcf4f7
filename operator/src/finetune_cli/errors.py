"""The one way a verb ends because of its input: problems, each with a remedy, and exit code 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click

from finetune_api.validation.problem import Problem

from .exit_codes import INPUT_WRONG


class Refused(click.ClickException):
    """The input is wrong. Nothing was started and nothing was written."""

    exit_code = INPUT_WRONG

    def __init__(self, problems: Sequence[Problem], places: Sequence[str] = ()) -> None:
        """`places` are file:line:column of each problem, where known."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
        self.places = tuple(places) or ("",) * len(problems)

    def show(self, file: IO[Any] | None = None) -> None:
        for problem, place in zip(self.problems, self.places, strict=True):
            click.echo(described(problem, place), file=file, err=True)


def described(problem: Problem, place: str = "") -> str:
    """A problem as people read it: what is wrong, how to mend it, where it stands."""
    head = click.style("error:", fg="red", bold=True)
    path = click.style(problem.path, bold=True)
    lines = [f"{head} {path}: {problem.message} [{problem.reason}]"]
    if problem.remedy:
        lines.append(f"  remedy: {problem.remedy}")
    if place:
        lines.append(f"  at {place}")
    return "\n".join(lines)
