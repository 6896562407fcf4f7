"""The options that override values of a job: --dataset, --examples, --model, --output and --set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from finetune_api.validation.problem import Problem

from . import kubernetes_yaml
from .errors import InvalidInput

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Overrides:
    """Values of the options; None where an option is not given."""

    dataset: str | None = None
    examples: int | None = None
    model: str | None = None
    output: str | None = None
    assignments: tuple[str, ...] = ()


_PATHS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "dataset": ("job.data", ("job.data_path",)),
    "model": ("job.model", ("policy.model_name", "policy.source")),
    "examples": ("data.examples", ()),
    "output": ("output.uri", ("output.ephemeral",)),
}
"""The key that an option sets, and the keys that would contradict it."""


def options(command: F) -> F:
    """Add the options to a command; their names are the fields of Overrides."""
    for option in (
        click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True,
                     help="Set a key of the spec, for example hyperparameters.learning_rate=8e-6. Repeatable."),
        click.option("--output", metavar="FOLDER", help="Write the result to FOLDER: sets output.uri."),
        click.option("--model", metavar="MODEL", help="Train this base model: sets job.model."),
        click.option("--examples", metavar="N", type=click.IntRange(1),
                     help="Train on the first N rows: sets data.examples."),
        click.option("--dataset", metavar="FILE", help="Train on this file: sets job.data."),
    ):  # fmt: skip
        command = option(command)
    return command


def apply(resource: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of the job with the overrides, --set last. Raises InvalidInput."""
    result = copy.deepcopy(dict(resource))
    for option, (path, aliases) in _PATHS.items():
        value = getattr(overrides, option)
        if value is not None:
            _set(result, path, value)
            for alias in aliases:
                _remove(result, alias)
    for assignment in overrides.assignments:
        _set(result, *_parse(assignment))
    return result


def option_at(overrides: Overrides, path: str) -> str:
    """The option that gave the value at a path of the job, as it was written; empty if none did."""
    values = {name: getattr(overrides, name) for name in _PATHS}
    given = [(_PATHS[name][0], f"--{name} {value}") for name, value in values.items() if value is not None]
    given += [(each.partition("=")[0], f"--set {each}") for each in overrides.assignments]
    of_path = (text for key, text in reversed(given) if f"{path}.".startswith((f"spec.{key}.", f"spec.{key}[")))
    return next(of_path, "")


def _parse(assignment: str) -> tuple[str, Any]:
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")):
        raise _invalid(assignment, "This does not assign a value to a key.", "Write --set section.key=value.")
    try:
        return path, kubernetes_yaml.value(text)
    except kubernetes_yaml.InvalidYaml as error:
        raise _invalid(assignment, f"The value is not YAML: {error}.", "Write the value as in a job.") from None


def _set(resource: dict[str, Any], path: str, value: Any) -> None:
    section = resource
    *parents, last = ("spec", *path.split("."))
    for name in parents:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            message = f"{name} is not a section: its value is {inner!r}."
            raise _invalid(f"{path}={value}", message, "Set a key of a section.")
        section = inner
    section[last] = value


def _remove(resource: dict[str, Any], path: str) -> None:
    name, _, key = path.partition(".")
    section = resource["spec"].get(name)
    if isinstance(section, dict):
        section.pop(key, None)
        if not section:
            del resource["spec"][name]


def _invalid(assignment: str, message: str, remedy: str) -> InvalidInput:
    return InvalidInput([Problem(f"--set {assignment}", "BadOption", message, remedy)])
