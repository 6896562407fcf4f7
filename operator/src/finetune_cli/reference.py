"""`python -m finetune_cli.reference` writes docs/reference/cli.md from the help texts; run it in the repository.

With --check it writes nothing and exits with 1 if the page is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .main import VERBS, cli

PAGE = Path("docs/reference/cli.md")
WIDTH = 100
GENERATED = "<!-- Generated from the help texts by `python -m finetune_cli.reference`; `make verify` compares. -->\n"


def page() -> str:
    """The page: the help of `finetune` and of each verb."""
    top = click.Context(cli, info_name="finetune", terminal_width=WIDTH, **cli.context_settings)
    parts = [f"{GENERATED}# The command line\n", _block(cli, top)]
    for verb in VERBS:
        command = cli.get_command(top, verb)
        assert command is not None
        parts.append(f"## finetune {verb}\n")
        parts.append(_block(command, click.Context(command, parent=top, info_name=verb, terminal_width=WIDTH)))
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
        if not fresh:
            sys.stderr.write(f"{PAGE} is out of date: run `python -m finetune_cli.reference`\n")
        return 0 if fresh else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def _block(command: click.Command, context: click.Context) -> str:
    return f"```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
