"""`kubectl_complete-finetune`: what kubectl runs to complete `kubectl finetune ...`.

kubectl passes the words so far, the last one unfinished, and reads one candidate a line (a tab before its
description) and at last a colon with a number: 0 lets the shell complete file names, 4 does not.
"""

from __future__ import annotations

import sys

import click
from click.shell_completion import ShellComplete

from .main import cli

FILES, NO_FILES = 0, 4


def main() -> None:
    """The entry point."""
    *words, unfinished = sys.argv[1:] or [""]
    found = ShellComplete(cli, {}, "kubectl finetune", "").get_completions(words, unfinished)
    plain = [item for item in found if item.type == "plain"]
    for item in plain:
        click.echo(f"{item.value}\t{item.help}" if item.help else item.value)
    click.echo(f":{FILES if len(plain) < len(found) or not found else NO_FILES}")
