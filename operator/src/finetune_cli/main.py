"""The table of verbs. A verb's file is imported when the verb is used, so that `--help` answers at once."""

from __future__ import annotations

import gc
import io
import os
import sys
from importlib import import_module

import click

VERBS = {
    "run": "Finetune on this machine.",
    "validate": "Say everything that is wrong with a job.",
    "explain": "Say what a key of a job means.",
    "render": "Print what a cluster would run.",
    "submit": "Start a job on a cluster.",
    "list": "List jobs.",
    "status": "Say how a job is.",
    "watch": "Show a job's progress, live.",
    "logs": "Print what a job's pods say.",
    "diagnose": "Say why a job is not running.",
    "suspend": "Stop a job after a checkpoint, and give its GPUs back.",
    "resume": "Let a suspended job go on.",
    "cancel": "End a job for good.",
    "delete": "Delete a job and its pods.",
    "fetch": "Bring a job's result here.",
    "completion": "Print a completion script for a shell.",
    "version": "Print the version.",
}
"""Verb -> its line in `finetune --help`. The file is verbs/<verb>.py."""


class Verbs(click.Group):
    """A group that imports a verb's file when the verb is called, not when the verbs are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"finetune_cli.verbs.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

            near = get_close_matches(args[0], VERBS, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(VERBS)}."
            raise click.UsageError(f"{error.message} {hint}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 the run failed, 2 the input is wrong, 75 stopped on request after a checkpoint.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Finetune language models: on this machine, or on a Kubernetes cluster.

    Jobs are FinetuneJob files (YAML or JSON), or finetuning TOML files. Data goes to standard output, and
    everything else to standard error.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """The entry point of both `finetune` and `kubectl finetune`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plot in a terminal without Unicode is no reason to fail
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # the search for them reads every package's metadata
    gc.set_threshold(100_000)  # imports make many objects and hardly any garbage: a tenth of the start-up
    plugin = sys.argv[0].rpartition(os.sep)[2].startswith("kubectl-")
    cli(prog_name="kubectl finetune" if plugin else "finetune")
