"""The last words about a run: what came out of it and where, or what went wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from finetune_api.runtime import report
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import RECORDS
from finetune_api.runtime.report import DatasetRecord, EvaluationRecord, ProgressRecord, Record

from . import chart, words
from .cause import Ending

INITIAL, BEST, TRAIN = "val.loss.initial", "val.loss", "train.loss"


def records(output: Path) -> list[Record]:
    """What all runs of this output have recorded, a continued run included."""
    with suppress(FileNotFoundError):
        lines = (output / RECORDS).read_text(encoding="utf-8", errors="replace").splitlines()
        return [record for line in lines if (record := report.parse(line))]
    return []


def succeeded(ending: Ending, found: list[Record], seconds: float) -> str:
    """The result of a run that went well, for people."""
    assert ending.report is not None
    metrics = ending.report.metrics
    lines = [f"succeeded in {words.duration(seconds)}"]
    before, after = metrics.get(INITIAL), metrics.get(BEST)
    if before and after is not None:
        at = f", of step {ending.report.best_step}" if ending.report.best_step is not None else ""
        lines.append(f"eval loss:  {before:.4f} before, {after:.4f} after ({after / before:.2f} x{at})")
    if metrics.get(TRAIN) is not None:
        lines.append(f"train loss: {words.number(metrics[TRAIN])} at the end")
    lines += [f"rows:       {words.line(each)}" for each in _datasets(found)]
    lines.append(f"result:     {ending.report.result}")
    return "\n".join([*lines, *_plots(found)])


def stopped(ending: Ending, again: str) -> str:
    """What a run that was stopped has to say."""
    return f"stopped: {ending.message}\nTo continue, run the same command again: {again}"


def failed(ending: Ending, log: Path) -> str:
    """The root cause, and the way out."""
    lines = [f"error: {ending.replica}: {ending.message} [{ending.reason}]"]
    if ending.remedy:
        lines.append(f"  remedy: {ending.remedy}")
    return "\n".join([*lines, f"  log: {log}"])


def _datasets(found: list[Record]) -> Iterator[DatasetRecord]:
    """The last record of each split."""
    last = {each.split: each for each in found if isinstance(each, DatasetRecord)}
    yield from last.values()


def _plots(found: list[Record]) -> Iterator[str]:
    """The losses over steps. A step that was done twice, by a run that crashed, counts once."""
    train = {r.step: r.loss for r in found if isinstance(r, ProgressRecord) and r.loss is not None}
    evaluation = {r.step: r.loss for r in found if isinstance(r, EvaluationRecord) and r.loss is not None}
    for title, losses in (("training loss over steps", train), ("eval loss over steps", evaluation)):
        drawn = chart.plot(list(losses.items()))
        if drawn:
            yield f"\n{title}\n{drawn}"


WRONG_INPUT = {Exit.CONFIG_REFUSED, Exit.DATA_REFUSED, Exit.MODEL_REFUSED, Exit.OUTPUT_REFUSED, Exit.UNSUPPORTED}
"""Exits of the trainer that say the same as our own exit code 2."""
