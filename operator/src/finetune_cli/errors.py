"""How a command ends with an error that it expects: problems, each with a remedy, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click

from finetune_api.validation.problem import Problem

from . import exit_codes


class CommandError(click.ClickException):
    """A command that ends with problems."""

    def __init__(self, problems: Sequence[Problem], locations: Sequence[str] = ()) -> None:
        """`locations` are file:line:column of each problem, or an option, where known."""
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)
        self.locations = tuple(locations) or ("",) * len(problems)

    def show(self, file: IO[Any] | None = None) -> None:
        for problem, location in zip(self.problems, self.locations, strict=True):
            click.echo(format_problem(problem, location), file=file, err=True)


class InvalidInput(CommandError):
    """The input is wrong. Nothing was started and nothing was written."""

    exit_code = exit_codes.INPUT_WRONG


class OperationFailed(CommandError):
    """The input is right, and the operation failed."""

    exit_code = exit_codes.FAILED


KEPT = "\n\t\u00a0\u00ad\u200b\u200c\u200d\u202f\u2060\u3000\ufeff"
"""Spaces and joiners of ordinary text, which str.isprintable() refuses."""


def printable(text: str, keep: str = "\n") -> str:
    """Text of others for a terminal: characters that control it, or the direction of writing, are escaped."""
    return "".join(each if each in keep or each.isprintable() else repr(each)[1:-1] for each in text)


def format_problem(problem: Problem, location: str = "") -> str:
    """A problem for people: what is wrong, the remedy, and the place in the file."""
    head = click.style("error:", fg="red", bold=True)
    path = click.style(printable(problem.path), bold=True)
    lines = [f"{head} {path}: {printable(problem.message)} [{problem.reason}]"]
    if problem.remedy:
        lines.append(f"  remedy: {printable(problem.remedy)}")
    if location:
        lines.append(f"  at {printable(location)}")
    return "\n".join(lines)
