"""`kubectl_complete-finetune`: kubectl runs it to complete `kubectl finetune ...`.

kubectl passes the arguments so far, the last one incomplete. It reads one candidate per line, with a tab before the
description, and a last line with a colon and a directive: 0 lets the shell complete file names, 4 does not.
"""

from __future__ import annotations

import sys

import click
from click.shell_completion import ShellComplete

from .main import cli

FILES, NO_FILES = 0, 4


def main() -> None:
    """The entry point."""
    *arguments, incomplete = sys.argv[1:] or [""]
    found = ShellComplete(cli, {}, "kubectl finetune", "").get_completions(arguments, incomplete)
    values = [item for item in found if item.type == "plain"]
    for item in values:
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{FILES if len(values) < len(found) or not found else NO_FILES}")
