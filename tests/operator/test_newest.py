"""What is taken from the end of a trainer's log."""

from __future__ import annotations

from typing import Literal

from finetune_api.runtime.report import CheckpointRecord, DatasetRecord, EvaluationRecord, ProgressRecord
from finetune_operator.progress import newest

SPLITS: tuple[Literal["train"], Literal["validation"]] = ("train", "validation")


def progress(step: int) -> ProgressRecord:
    return ProgressRecord(
        time=1.0, step=step, total_steps=9, epoch=0.1, loss=1.0, learning_rate=1e-5, grad_norm=1.0,
        tokens_per_second=1.0, eta_seconds=1.0,
    )  # fmt: skip


def test_the_last_record_of_each_kind_counts_and_a_line_that_was_cut_does_not() -> None:
    evaluation = EvaluationRecord(time=1.0, step=2, loss=1.0, rows=3, best=True)
    checkpoint = CheckpointRecord(time=1.0, step=2, seconds=0.5)
    records = [progress(1), checkpoint, evaluation, progress(2), progress(3)]
    lines = ["a library's own words", *(record.line() for record in records), progress(4).line()[:40]]
    assert newest(lines) == (progress(3), evaluation, checkpoint)
    assert newest([]) == ()


def test_rows_that_are_trained_on_are_not_hidden_by_those_held_out() -> None:
    train, held_out = (
        DatasetRecord(split=split, rows=9, used=9, refused=0, truncated=0, tokens=90, target_tokens=30)
        for split in SPLITS
    )
    assert set(newest([train.line(), held_out.line(), progress(1).line()])) == {train, held_out, progress(1)}
