"""The output of replicas ends up in the status, the log files and the display."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.replicas import launch
from finetune_api.resource.status import Phase, Status
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import (
    CheckpointRecord,
    DatasetRecord,
    EvaluationRecord,
    FinalReport,
    ProgressRecord,
    Record,
)
from finetune_cli import kubernetes_yaml
from finetune_cli.local.display import Display
from finetune_cli.local.outcome import Outcome
from finetune_cli.local.processes import OutputLine
from finetune_cli.local.recorder import RunRecorder, previous_run

DATASET = DatasetRecord(split="train", rows=10, used=9, refused=1, truncated=0, tokens=100, target_tokens=25)
STEP = ProgressRecord(time=1.0, step=3, total_steps=12, epoch=0.5, loss=2.5, learning_rate=1e-4, grad_norm=1.5,
                      tokens_per_second=210.0, eta_seconds=90.4)  # fmt: skip
EVALUATION = EvaluationRecord(time=1.0, step=3, loss=2.25, rows=5, best=True)
CHECKPOINT = CheckpointRecord(time=1.0, step=3, seconds=0.1)
REPORT = FinalReport(time=2.0, exit_code=0, reason="Succeeded", message="Done.", step=12, digest="sha256:1",
                     result="out/result", metrics={"val.loss": 1.5, "train.loss": None}, best_step=9)  # fmt: skip


class RecordingDisplay(Display):
    """A display that remembers."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.texts: list[tuple[str, str]] = []

    def record(self, record: Record) -> None:
        self.records.append(record)

    def line(self, replica: str, text: str) -> None:
        self.texts.append((replica, text))


def _watched(
    output: Path, *lines: str | Record, node: int = 0, out: bool = True
) -> tuple[RunRecorder, RecordingDisplay]:
    display = RecordingDisplay()
    watch = RunRecorder(output, Status(run=1), display)
    replica = launch(output, node)
    watch.open([replica])
    for line in lines:
        watch.line(OutputLine(replica, line if isinstance(line, str) else line.line(), out))
    watch.close()
    return watch, display


def test_records_become_the_status_that_a_cluster_would_show(tmp_path: Path) -> None:
    watch, display = _watched(tmp_path, DATASET, STEP, EVALUATION, CHECKPOINT)
    status = watch.status
    assert status.dataset is not None
    assert status.progress is not None
    assert (status.phase, status.dataset.used, status.dataset.maskedFraction) == (Phase.TRAINING, 9, 0.75)
    assert (status.progress.step, status.progress.percent, status.progress.etaSeconds) == (3, 25, 90)
    assert (status.progress.evalLoss, status.progress.checkpointStep) == (2.25, 3)
    assert display.records == [DATASET, STEP, EVALUATION, CHECKPOINT]


def test_other_lines_are_shown_with_the_name_of_their_replica(tmp_path: Path) -> None:
    assert _watched(tmp_path, "loading", node=1)[1].texts == [("job-1-worker-1", "loading")]


def test_a_record_on_standard_error_is_a_line_like_any_other(tmp_path: Path) -> None:
    _, display = _watched(tmp_path, STEP, out=False)
    assert display.records == []
    assert len(display.texts) == 1


def test_every_line_is_in_the_replicas_log_and_later_runs_are_added(tmp_path: Path) -> None:
    _watched(tmp_path, "one", STEP)
    watch, _ = _watched(tmp_path, "two")
    assert watch.log("job-1-worker-0").read_text().splitlines() == ["one", STEP.line(), "two"]


def test_the_status_is_written_while_the_run_goes_on(tmp_path: Path) -> None:
    _watched(tmp_path, DATASET)
    written = kubernetes_yaml.value((tmp_path / "status.yaml").read_text())
    assert written["dataset"]["rows"] == 10


def test_the_end_is_written_with_its_result(tmp_path: Path) -> None:
    watch, _ = _watched(tmp_path, DATASET, STEP, REPORT)
    assert watch.status.phase is Phase.TRAINING
    watch.end(Outcome("job-1-worker-0", Exit.OK, REPORT))
    written = kubernetes_yaml.value((tmp_path / "status.yaml").read_text())
    assert (written["phase"], written["result"]["best"]) == ("Succeeded", 9)
    assert written["result"]["metrics"] == {"val.loss": 1.5}
    assert {c["type"] for c in written["conditions"] if c["status"] == "True"} == {"DataReady", "Ready", "Complete"}


def test_an_end_without_a_report_is_a_failure_with_a_remedy(tmp_path: Path) -> None:
    watch, _ = _watched(tmp_path, DATASET)
    watch.end(Outcome("job-1-worker-0", 137, None))
    [failed] = [c for c in watch.status.conditions or () if c.type == "Failed"]
    assert (watch.status.phase, failed.reason) == (Phase.FAILED, "Killed")
    assert "raise pods.memory" in failed.message


def test_a_folder_with_another_jobs_work_keeps_that_jobs_status(tmp_path: Path) -> None:
    (tmp_path / "status.yaml").write_text("run: 7\nphase: Succeeded\n")
    watch, _ = _watched(tmp_path)
    watch.end(Outcome("job-1-worker-0", Exit.OUTPUT_REFUSED, None))
    assert (tmp_path / "status.yaml").read_text() == "run: 7\nphase: Succeeded\n"


@pytest.mark.parametrize(("text", "number"), [(None, 0), ("run: 4\n", 4), ("[", 0), ("x", 0), ("run: many\n", 0)])
def test_the_number_of_the_last_run_is_in_its_status(text: str | None, number: int, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "status.yaml").write_text(text)
    assert previous_run(tmp_path) == number
