"""What the command line changes in a job: --dataset, --examples, --model, --output and --set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from finetune_api.validation.problem import Problem

from . import kubernetes_yaml
from .errors import Refused

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Changes:
    """Values of the options; None where an option is not given."""

    dataset: str | None = None
    examples: int | None = None
    model: str | None = None
    output: str | None = None
    assignments: tuple[str, ...] = ()


def options(command: F) -> F:
    """Give a verb the options of Changes, under their names."""
    for option in (
        click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True,
                     help="Set a key of the spec, for example hyperparameters.learning_rate=8e-6. Repeatable."),
        click.option("--output", metavar="FOLDER", help="Put the result there: sets output.uri."),
        click.option("--model", metavar="MODEL", help="Train this base model: sets job.model."),
        click.option("--examples", metavar="N", type=click.IntRange(1),
                     help="Train on the first N rows: sets data.examples."),
        click.option("--dataset", metavar="FILE", help="Train on this file: sets job.data."),
    ):  # fmt: skip
        command = option(command)
    return command


def changed(resource: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """A copy of the job with the changes made, --set last. Raises Refused."""
    result = copy.deepcopy(dict(resource))
    for value, path, others in (
        (changes.dataset, "job.data", ("job.data_path",)),
        (changes.model, "job.model", ("policy.model_name", "policy.source")),
        (changes.examples, "data.examples", ()),
        (changes.output, "output.uri", ("output.ephemeral",)),
    ):
        if value is not None:
            _set(result, path, value)
            for other in others:  # which would contradict
                _remove(result, other)
    for assignment in changes.assignments:
        _set(result, *_parsed(assignment))
    return result


def with_output(changes: Changes, output: str) -> Changes:
    return replace(changes, output=output)


def _parsed(assignment: str) -> tuple[str, Any]:
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise _refused(assignment, "This does not assign a value to a key.", "Write --set section.key=value.")
    try:
        return path, kubernetes_yaml.value(text)
    except kubernetes_yaml.Malformed as error:
        raise _refused(assignment, f"The value is not YAML: {error}.", "Write a value as in a job.") from None


def _set(resource: dict[str, Any], path: str, value: Any) -> None:
    at = resource
    *parents, last = ("spec", *path.split("."))
    for name in parents:
        inner = at.setdefault(name, {})
        if not isinstance(inner, dict):
            message = f"{name} is not a section: it holds {inner!r}."
            raise _refused(f"{path}={value}", message, "Set a key of a section.")
        at = inner
    at[last] = value


def _remove(resource: dict[str, Any], path: str) -> None:
    section, _, name = path.partition(".")
    found = resource["spec"].get(section)
    if isinstance(found, dict):
        found.pop(name, None)
        if not found:
            del resource["spec"][section]


def _refused(assignment: str, message: str, remedy: str) -> Refused:
    return Refused([Problem(f"--set {assignment}", "BadOption", message, remedy)])
