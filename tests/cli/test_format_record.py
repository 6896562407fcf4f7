"""What people read while a run goes on and when it has ended."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from cli.test_recorder import CHECKPOINT, DATASET, EVALUATION, REPORT, STEP
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Record, ResumeRecord
from finetune_cli.local import summary
from finetune_cli.local.display import Bar, Lines
from finetune_cli.local.format_record import format_duration, format_record
from finetune_cli.local.outcome import Outcome
from finetune_cli.local.plot import plot

LINES: dict[str, Record] = {
    "train: 9 of 10 rows, 1 refused; 100 tokens, 25 with loss": DATASET,
    "train: 10 of 10 rows, 2 truncated; 100 tokens, 25 with loss": DATASET.model_copy(
        update={"used": 10, "refused": 0, "truncated": 2}
    ),
    "step 3/12  loss 2.5000  lr 0.0001  210 tokens/s  1m30s left": STEP,
    "step 3/12  loss nan  lr 0.0001": STEP.model_copy(
        update={"loss": None, "tokens_per_second": None, "eta_seconds": None}
    ),
    "eval at step 3: loss 2.2500 (best so far)": EVALUATION,
    "eval at step 3: loss 2.2500": EVALUATION.model_copy(update={"best": False}),
    "step 3/12  loss 1e+308  lr 1e+308  1e+308 tokens/s  1e+308s left": STEP.model_copy(
        update={"loss": 1e308, "learning_rate": 1e308, "tokens_per_second": 1e308, "eta_seconds": 1e308}
    ),
    "checkpoint at step 3 saved in 1e+308 s": CHECKPOINT.model_copy(update={"seconds": 1e308}),
    "checkpoint at step 3 saved in 0.1 s": CHECKPOINT,
    "resuming from the checkpoint of step 8": ResumeRecord(time=1.0, step=8),
    "Succeeded: Done.": REPORT,
}


@pytest.mark.parametrize("line", LINES)
def test_a_record_is_one_line(line: str) -> None:
    assert format_record(LINES[line]) == line


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (250, "4m10s"), (3720, "1h02m")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_without_a_terminal_each_record_is_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    display = Lines()
    display.record(STEP)
    display.line("job-1-worker-1", "loading")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [format_record(STEP), "[job-1-worker-1] loading"]


@pytest.mark.parametrize("colours", [True, False])
def test_on_a_terminal_steps_move_a_bar_and_the_rest_scrolls_above(colours: bool) -> None:
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, no_color=not colours, width=120, highlight=False))
    bar.record(DATASET)
    bar.record(EVALUATION)
    bar.record(STEP)
    bar.close()
    drawn = screen.getvalue()
    assert format_record(DATASET) in drawn
    assert "step 3/12" in drawn
    assert "loss 2.5000  lr 0.0001  210 tokens/s  1m30s left  eval 2.2500" in drawn
    assert bool(re.search(r"\x1b\[[39]\d", drawn)) == colours


HOSTILE = "loading\x1b[2J\x07\u202eevil\rfine\u200d"
SAFE = r"[w] loading\x1b[2J\x07\u202eevil\rfine" + "\u200d"


def test_text_of_the_trainer_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().line("w", HOSTILE)
    assert capsys.readouterr().err == f"{SAFE}\n"
    screen = io.StringIO()
    Bar(Console(file=screen, width=120, highlight=False)).line("w", HOSTILE)
    assert screen.getvalue() == f"{SAFE}\n"


FORGED = "Bad.\n\x1b[32msucceeded in 1s\rresult: /tmp"


@pytest.mark.parametrize("code", [Exit.OK, Exit.STOPPED, Exit.DATA_REFUSED])
def test_a_message_of_the_trainer_begins_no_line_of_the_summary(code: Exit) -> None:
    report = REPORT.model_copy(
        update={"exit_code": code, "message": FORGED, "reason": "R\n\x1b[1m", "result": "out\nresult"}
    )
    outcome = Outcome("r", code, report)
    if code is Exit.OK:
        lines = summary.succeeded(outcome, [], 3.0, merged=False).splitlines()
        own = {"succeeded in 3s", "note:       Bad.", "train loss: nan at the end", "result:     out"}
    elif code is Exit.STOPPED:
        lines = summary.stopped(outcome, "finetune run 'a\nb'").splitlines()
        own = {"stopped: Bad.", "To resume, run the same command again: finetune run 'a"}
    else:
        lines = summary.failed(outcome, Path("out/a.log")).splitlines()
        own = {"error: r: Bad."}
    assert r"  \x1b[32msucceeded in 1s\rresult: /tmp" in "\n".join(lines)
    assert {line for line in lines if not line.startswith("  ")} <= own
    assert all(line.isprintable() for line in lines)


def test_the_summary_says_what_came_out_and_where() -> None:
    report = REPORT.model_copy(update={"metrics": {"val.loss": 1.2, "val.loss.initial": 2.4, "train.loss": 1.0}})
    steps = [STEP.model_copy(update={"step": step, "loss": 3.0 - step / 10}) for step in range(1, 13)]
    text = summary.succeeded(Outcome("r", Exit.OK, report), [DATASET, *steps, EVALUATION], 250.0, merged=True)
    head, plot = text.split("\n\n")
    assert head.splitlines() == [
        "succeeded in 4m10s",
        "note:       Done.",
        "eval loss:  2.4000 before, 1.2000 after (0.50 x, at step 9)",
        "train loss: 1.0000 at the end",
        "rows:       train: 9 of 10 rows, 1 refused; 100 tokens, 25 with loss",
        "result:     out/result",
        "merged:     out/result/merged",
    ]
    assert plot.startswith("training loss over steps\n      2.9 ")


def test_a_failure_is_shown_with_its_cause_its_remedy_and_its_log() -> None:
    assert summary.failed(Outcome("job-1-worker-1", 137, None), Path("out/logs/job-1-worker-1.log")).splitlines() == [
        "error: job-1-worker-1: The trainer was killed by signal 9. [Killed]",
        "  remedy: Signal 9 is most often the memory limit of the pod: raise pods.memory.",
        "  log: out/logs/job-1-worker-1.log",
    ]


def test_records_of_an_output_are_read_and_other_lines_passed_over(tmp_path: Path) -> None:
    assert summary.records(tmp_path) == []
    (tmp_path / "records.jsonl").write_text(f"{STEP.line()}\n{{half\n{EVALUATION.line()}\n")
    assert summary.records(tmp_path) == [STEP, EVALUATION]


def test_a_pipe_in_place_of_the_records_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "records.jsonl")
    assert summary.records(tmp_path) == []


def test_a_plot_shows_its_range_and_falls_where_the_numbers_fall() -> None:
    drawn = plot([(float(x), 4.0 - x) for x in range(4)], width=8, height=2).splitlines()
    assert drawn == [
        "        4 ⠉⠒⠤⣀",
        "        1     ⠉⠒⠤⣀",
        "          0      3",
    ]


def test_a_level_line_is_drawn_in_the_middle() -> None:
    drawn = plot([(0.0, 2.0), (1.0, 2.0)], width=4, height=3).splitlines()
    assert drawn[1] == f"{'':9} ⠤⠤⠤⠤"


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(1.0, float("nan")), (2.0, 1.0)]])
def test_fewer_than_two_points_are_no_plot(points: list[tuple[float, float]]) -> None:
    assert plot(points) == ""
