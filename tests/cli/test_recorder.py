"""The output of replicas ends up in the status, the log files and the display."""

from __future__ import annotations

import os
from collections.abc import Callable
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
        watch.line(OutputLine(replica, (line if isinstance(line, str) else line.line()).encode(), out))
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


def test_the_log_keeps_the_bytes_of_a_line_and_people_see_what_a_terminal_would_show(tmp_path: Path) -> None:
    display = RecordingDisplay()
    watch = RunRecorder(tmp_path, Status(run=1), display)
    replica = launch(tmp_path, 0)
    watch.open([replica])
    watch.line(OutputLine(replica, b"error: lost\r 50%\r100%\r", is_stdout=False))
    watch.line(OutputLine(replica, b"\xff\x1b[2J", is_stdout=False))
    watch.line(OutputLine(replica, b"99%\r" + STEP.line().encode(), is_stdout=True))
    watch.close()
    lines = b"error: lost\r 50%\r100%\r\n\xff\x1b[2J\n99%\r" + STEP.line().encode() + b"\n"
    assert watch.log("job-1-worker-0").read_bytes() == lines
    assert [text for _, text in display.texts] == ["100%", "\ufffd\x1b[2J"]
    assert display.records == [STEP]


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("theirs"), os.mkfifo, lambda path: path.touch()])
def test_what_lies_where_the_status_is_prepared_is_removed_and_not_followed(
    tmp_path: Path, put: Callable[[Path], object]
) -> None:
    (tmp_path / "theirs").write_text("theirs")
    put(tmp_path / ".status.yaml")
    _watched(tmp_path, DATASET)
    assert previous_run(tmp_path) == 1
    assert not (tmp_path / "status.yaml").is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "logs", "status.yaml"}


@pytest.mark.parametrize("put", [lambda path: path.symlink_to(path.parents[1] / "theirs"), os.mkfifo])
def test_a_log_that_leads_elsewhere_is_not_written(tmp_path: Path, put: Callable[[Path], object]) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "logs").mkdir()
    put(tmp_path / "logs" / "job-1-worker-0.log")
    with pytest.raises(OSError, match=r"Is a (link|pipe)"):
        _watched(tmp_path, "line")
    assert (tmp_path / "theirs").read_text() == "theirs"


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


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (None, 0),
        (b"run: 4\n", 4),
        (b"[", 0),
        (b"x", 0),
        (b"run: many\n", 0),
        (b"run: true\n", 0),
        (b"run: -3\n", 0),
        (b"run: 1000000\n", 1_000_000),
        (b"run: 1000001\n", 0),
        (b"run: " + b"9" * 4_000, 0),
        (b"run: " + b"9" * 5_000, 0),
        (b"\xff\x00", 0),
        (b"run: 4\n\0", 0),
        (b"run: 4\na: " + b"[" * 100_000, 0),
        (b"run: 4\n" + b"#" * (1 << 20), 0),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_number_of_the_last_run_is_in_its_status(content: bytes | None, number: int, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "status.yaml").write_bytes(content)
    assert previous_run(tmp_path) == number


def test_a_pipe_is_no_status_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "status.yaml")
    assert previous_run(tmp_path) == 0
