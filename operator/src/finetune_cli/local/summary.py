"""The summary that is printed after a run: the result and where it is, or the failure and its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from finetune_api.runtime import report
from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.protocol import MERGED, RECORDS
from finetune_api.runtime.report import DatasetRecord, EvaluationRecord, ProgressRecord, Record
from finetune_cli.errors import KEPT, printable
from finetune_data import regular

from .format_record import format_duration, format_number, format_record
from .outcome import Outcome
from .plot import plot

INITIAL, BEST, TRAIN = "val.loss.initial", "val.loss", "train.loss"
WRONG_INPUT = {Exit.CONFIG_REFUSED, Exit.DATA_REFUSED, Exit.MODEL_REFUSED, Exit.OUTPUT_REFUSED, Exit.UNSUPPORTED}
"""Exit codes of the trainer that mean our exit code 2."""


def records(output: Path) -> list[Record]:
    """The records of all runs with this output, resumed runs included."""
    with suppress(OSError):  # a missing file, or something else in its place
        lines = regular.content(output / RECORDS).decode("utf-8", "replace").splitlines()
        return [record for line in lines if (record := report.parse(line))]
    return []


def succeeded(outcome: Outcome, found: list[Record], seconds: float, *, merged: bool) -> str:
    """The result of a run that succeeded. `merged`: whether it has the merged model, too."""
    assert outcome.report is not None
    metrics = outcome.report.metrics
    lines = [f"succeeded in {format_duration(seconds)}"]
    if outcome.message not in ("", MEANINGS[Exit.OK].sentence):
        lines.append(f"note:       {_printable(outcome.message.removeprefix(MEANINGS[Exit.OK].sentence).strip())}")
    before, after = metrics.get(INITIAL), metrics.get(BEST)
    if before and after is not None:
        step = outcome.report.best_step
        at = "" if step is None else f", at step {step}"
        lines.append(f"eval loss:  {before:.4f} before, {after:.4f} after ({after / before:.2f} x{at})")
    if metrics.get(TRAIN) is not None:
        lines.append(f"train loss: {format_number(metrics[TRAIN])} at the end")
    datasets = {each.split: each for each in found if isinstance(each, DatasetRecord)}  # the last of each split
    lines += [f"rows:       {format_record(each)}" for each in datasets.values()]
    lines.append(f"result:     {_printable(outcome.report.result)}")
    if merged:
        lines.append(f"merged:     {_printable(outcome.report.result)}/{MERGED}")
    return "\n".join([*lines, *_plots(found)])


def stopped(outcome: Outcome, command: str) -> str:
    """A run that was stopped on request, and the command that resumes it."""
    return f"stopped: {_printable(outcome.message)}\nTo resume, run the same command again: {_printable(command)}"


def failed(outcome: Outcome, log: Path) -> str:
    """The root cause of a run that failed, with its remedy."""
    lines = [f"error: {outcome.replica}: {_printable(outcome.message)} [{_printable(outcome.reason)}]"]
    if outcome.remedy:
        lines.append(f"  remedy: {outcome.remedy}")
    return "\n".join([*lines, f"  log: {_printable(str(log))}"])


def _printable(text: str) -> str:
    """Text of others, which may hold anything: it cannot control the terminal, nor begin a line of its own."""
    return printable(text, KEPT).replace("\n", "\n  ")


def _plots(found: list[Record]) -> Iterator[str]:
    """Plots of the losses over steps. A step that was repeated after a crash is drawn once."""
    train = {r.step: r.loss for r in found if isinstance(r, ProgressRecord) and r.loss is not None}
    evaluation = {r.step: r.loss for r in found if isinstance(r, EvaluationRecord) and r.loss is not None}
    for title, losses in (("training loss over steps", train), ("eval loss over steps", evaluation)):
        drawn = plot(list(losses.items()))
        if drawn:
            yield f"\n{title}\n{drawn}"
