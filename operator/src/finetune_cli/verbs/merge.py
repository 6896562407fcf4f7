"""`finetune merge`: an adapter becomes a model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.protocol import RESULT, RUN_FILE
from finetune_api.validation.problem import Problem
from finetune_cli import printing
from finetune_cli.errors import InvalidInput, OperationFailed
from finetune_cli.local import merge, summary
from finetune_cli.remote.progress import format_size

CONFIG = "adapter_config.json"


@click.command()
@click.argument("adapter", type=click.Path(file_okay=False))
@click.option("--output", required=True, type=click.Path(), metavar="FOLDER", help="New folder for the merged model.")
@click.option("--base", default="", metavar="MODEL",
              help="The base: a folder, or org/name on the Hub; default: what ADAPTER names.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@printing.option(help="Print {adapter, base, output, layers, bytes} for programs.")
def command(adapter: str, output: str, base: str, quiet: bool, form: str | None) -> None:
    """Merge the adapter in the folder ADAPTER into its base, on the CPU: a Hugging Face model without PEFT.

    ADAPTER is the output of a run, its result, or a folder of a LoRA adapter by PEFT. A base on the Hugging Face Hub
    is downloaded. The folder of --output appears when it is complete, and takes the room of the base, of one in 4 or
    8 bits that in 16. Exit code 1 if it could not be written, 2 if the input is wrong.
    """
    _require_folders(Path(adapter), Path(output))
    _require_contents(adapter, output)
    _require_packages()
    outcome = merge.run(Path(adapter), Path(output), base, quiet=quiet or bool(form))
    if outcome.exit_code != Exit.OK:
        refused = outcome.exit_code in summary.WRONG_INPUT
        raise (InvalidInput if refused else OperationFailed)([Problem("merge", outcome.reason, outcome.message, "")])
    if form:
        found = outcome.model_dump(include={"adapter", "base", "layers", "bytes"})
        printing.document(found | {"output": output}, form)
    elif not quiet:
        click.echo(
            f"merged {outcome.layers:,} layers of {outcome.adapter} into {outcome.base}\n"
            f"result: {output} ({format_size(outcome.bytes)} of weights)"
        )


def _require_packages() -> None:
    from importlib.util import find_spec  # noqa: PLC0415

    if find_spec("torch") is None:
        problem = Problem("merge", MEANINGS[Exit.UNSUPPORTED].reason, "torch, which merges, is not installed here.",
                          "pip install finetune-operator[trainer], or set output.merge in the job.")  # fmt: skip
        raise InvalidInput([problem])


def _require_folders(adapter: Path, output: Path) -> None:
    """What needs no import of torch to be refused."""
    reasons = {each: MEANINGS[each].reason for each in (Exit.MODEL_REFUSED, Exit.OUTPUT_REFUSED)}
    if not adapter.is_dir():
        problem = Problem("ADAPTER", reasons[Exit.MODEL_REFUSED], f"The folder {adapter} does not exist.",
                          "Name the output of a run, its result, or the folder of an adapter.")  # fmt: skip
        raise InvalidInput([problem])
    if output.exists() or output.is_symlink():
        problem = Problem("--output", reasons[Exit.OUTPUT_REFUSED], f"{output} already exists.",
                          "Give --output with a new folder.")  # fmt: skip
        raise InvalidInput([problem])


def _require_contents(adapter: str, output: str) -> None:
    """Likewise of what the folders have; who may read it and whether it is whole, the program says."""
    reasons = {each: MEANINGS[each].reason for each in (Exit.MODEL_REFUSED, Exit.OUTPUT_REFUSED)}
    if not any(os.path.lexists(f"{adapter}/{name}") for name in (CONFIG, RUN_FILE, RESULT)):
        problem = Problem("ADAPTER", reasons[Exit.MODEL_REFUSED], f"{adapter} has no {CONFIG}, so it is no adapter.",
                          "Name the output of a run, its result, or the folder of an adapter.")  # fmt: skip
        raise InvalidInput([problem])
    there = next(each for each in Path(os.path.abspath(output)).parents if os.path.lexists(each))  # noqa: PTH100 - keeps links
    if not os.access(there, os.W_OK | os.X_OK):
        problem = Problem("--output", reasons[Exit.OUTPUT_REFUSED], f"{there} is no folder that can be written to.",
                          "Give --output with a folder in one where you may write.")  # fmt: skip
        raise InvalidInput([problem])
