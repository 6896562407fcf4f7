"""Data for programs on standard output: one JSON or YAML document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from . import kubernetes_yaml

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = ("json", "yaml")


def option(**more: Any) -> Callable[[F], F]:
    """The option -o of a command."""
    settings = {"help": "Print for programs.", **more}
    return click.option("-o", "--output-format", "form", type=click.Choice(FORMATS), **settings)


def text(data: Any, form: str) -> str:
    """`data` as one document, with its newline."""
    if form == "json":
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return kubernetes_yaml.dump(data)


def document(data: Any, form: str) -> None:
    """Print `data` as one document."""
    click.echo(text(data, form), nl=False)
