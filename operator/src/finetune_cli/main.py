"""The table of verbs. A verb's module is imported when the verb is used, so that `--help` is fast."""

from __future__ import annotations

import gc
import io
import os
import sys
from functools import partial
from importlib import import_module
from typing import NamedTuple

import click

from . import exit_codes


class Verb(NamedTuple):
    """A verb as the table lists it."""

    summary: str
    """Its line in `finetune --help`."""
    module: str
    """In finetune_cli.verbs."""
    attribute: str = "command"
    """Name of the click command in that module."""


VERBS = {
    "run": Verb("Finetune on this machine.", "run"),
    "validate": Verb("Check jobs and report every problem.", "validate"),
    "explain": Verb("Document a key of a job.", "explain"),
    "render": Verb("Print the manifest that a cluster would run.", "render"),
    "submit": Verb("Start a job on a cluster.", "submit"),
    "list": Verb("List jobs.", "jobs", "list_"),
    "status": Verb("Show the status of a job.", "jobs", "status"),
    "watch": Verb("Show the progress of a job until it ends.", "jobs", "watch"),
    "logs": Verb("Print the logs of a job's pods.", "jobs", "logs"),
    "diagnose": Verb("Explain why a job is not running.", "jobs", "diagnose"),
    "suspend": Verb("Save a checkpoint, stop a job and release its GPUs.", "lifecycle", "suspend"),
    "resume": Verb("Continue a suspended job.", "lifecycle", "resume"),
    "cancel": Verb("End a job permanently.", "lifecycle", "cancel"),
    "delete": Verb("Delete a job and its pods.", "lifecycle", "delete"),
    "fetch": Verb("Download the result of a job.", "jobs", "fetch"),
    "merge": Verb("Merge an adapter into its base.", "merge"),
    "completion": Verb("Print a completion script for a shell.", "completion"),
    "version": Verb("Print the version.", "version"),
}

EXIT_CODES = """\
Exit codes: 0 success; 1 the run failed; 2 the input is wrong; 70 internal error (a bug); 75 stopped on request
after a checkpoint; 130 interrupted; 141 the output was closed by its reader.
"""


class Verbs(click.Group):
    """A group that imports a verb's module when the verb is called, not when the verbs are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        command: click.Command = getattr(import_module(f"finetune_cli.verbs.{verb.module}"), verb.attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # noqa: PLC0415 - only a mistake needs it

            near = get_close_matches(args[0], VERBS, 1)
            hint = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(VERBS)}."
            raise click.UsageError(f"{error.message} {hint}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.option("--debug", is_flag=True, envvar="FINETUNE_DEBUG", show_envvar=True,
              help="Print the traceback of an internal error.")  # fmt: skip
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Finetune language models on this machine or on a Kubernetes cluster.

    A job is a FinetuneJob file (YAML or JSON) or a finetuning TOML file. Data is written to standard output,
    messages and errors to standard error.
    """
    ctx.ensure_object(exit_codes.Session).debug = debug
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main() -> None:
    """The entry point of both `finetune` and `kubectl finetune`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plot on a terminal without Unicode must not fail
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # finding them reads every package's metadata
    gc.set_threshold(100_000)  # imports make many objects and little garbage: a tenth of the start-up
    plugin = sys.argv[0].rpartition(os.sep)[2].startswith("kubectl-")
    program = "kubectl finetune" if plugin else "finetune"
    session = exit_codes.Session()
    sys.exit(exit_codes.run(partial(cli.main, prog_name=program, standalone_mode=False, obj=session), session))
