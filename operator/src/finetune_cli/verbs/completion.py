"""`finetune completion`: a script that completes commands, options and file names in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from finetune_cli.main import cli


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a completion script for SHELL.

    Source it when your shell starts: source <(finetune completion bash)
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "finetune", "_FINETUNE_COMPLETE").source())
