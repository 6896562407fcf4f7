"""`finetune explain`: the meaning of a key, its valid values, its effect, and the rules that involve it."""

from __future__ import annotations

from typing import Any

import click

from finetune_api.codegen import reference
from finetune_api.codegen.reference import KeyEntry, NoSuchKeyError
from finetune_api.validation.problem import Problem
from finetune_cli import printing
from finetune_cli.errors import InvalidInput


@click.command()
@click.argument("key", default="")
@printing.option()
def command(key: str, form: str | None) -> None:
    """Document KEY, for example hyperparameters.learning_rate. Without KEY, list the sections."""
    try:
        if form:
            printing.document(_data(reference.find(key)) if key else [*reference.entries()], form)
        else:
            click.echo(reference.explain(key))
    except NoSuchKeyError as error:
        raise InvalidInput(
            [Problem(key, "UnknownKey", str(error), "`finetune explain` lists the sections.")]
        ) from None


def _data(entry: KeyEntry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "description": entry.description,
        "fits": entry.bounds,
        "required": entry.required,
        "fate": entry.key.fate.value,
        "because": entry.key.because,
        "rules": [{"reason": r.reason, "message": r.message, "remedy": r.remedy} for r in entry.rules],
    }
