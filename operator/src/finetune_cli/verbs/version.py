"""`finetune version`."""

from __future__ import annotations

from importlib import metadata

import click


@click.command()
def command() -> None:
    """Print the version."""
    click.echo(f"finetune {metadata.version('finetune-operator')}")
