"""The launcher: exit codes survive, causes are named, signals are passed on, nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_api.runtime.report import FinalReport, parse
from trainer.launcher_node import COMMAND

TESTS = Path(__file__).parents[1]
LONG = 60.0
"""A grace that no test waits for."""


@contextmanager
def node(folder: Path, parts: list[str], grace: float = LONG) -> Iterator[subprocess.Popen[str]]:
    """A launcher that is running; ended for good when the block ends."""
    command = [*COMMAND, json.dumps(parts), str(grace), str(folder)]
    variables = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(folder: Path, parts: list[str], grace: float = LONG) -> FinalReport:
    """The report of a node that is left alone."""
    with node(folder, parts, grace) as process:
        return report_of(process)


def report_of(process: subprocess.Popen[str]) -> FinalReport:
    assert process.stdout is not None
    report = parse(process.stdout.read().splitlines()[-1])
    assert isinstance(report, FinalReport)
    assert process.wait() == report.exit_code, "the launcher ends with another code than it reports"
    return report


def wait_until_ready(process: subprocess.Popen[str], ranks: int) -> None:
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(ranks)] == ["ready\n"] * ranks


@pytest.mark.parametrize(
    ("parts", "code", "rank", "message"),
    [
        pytest.param(["tell", "fail 7"], 7, 1, "rank 1 says so", id="a rank that exits with 7 makes the launcher 7"),
        pytest.param(["fail 9", "fail 3"], 3, 1, "rank 1 says so", id="who lost a peer is not the cause"),
        pytest.param(["fail 9", "fail 9"], 9, None, "says so", id="unless all that is known is a lost peer"),
        pytest.param(["die"], 137, 0, "killed by signal 9", id="a rank that is killed is named, with the signal"),
        pytest.param(["fail 9", "die"], 137, 1, "raise pods.memory", id="killed comes before who lost it"),
        pytest.param(["exit 0"], 1, 0, "without a report", id="an end without a report is a crash, even with code 0"),
        pytest.param(
            ["exit 13"], 13, 0, "rank 0 on node 0 ended without a report", id="an unknown code is passed on"
        ),
    ],
)
def test_a_failure_keeps_its_code_and_its_cause(
    tmp_path: Path, parts: list[str], code: int, rank: int | None, message: str
) -> None:
    report = run(tmp_path, parts)
    assert (report.exit_code, message in report.message) == (code, True), report.message
    assert report.cause is not None
    assert rank is None or report.cause.rank == rank


def test_ranks_that_hang_after_a_failure_are_ended_and_not_blamed(tmp_path: Path) -> None:
    report = run(tmp_path, ["hang", "fail 7", "hang"], grace=0.5)
    assert (report.exit_code, report.cause and report.cause.rank) == (7, 1)


def test_a_signal_is_passed_on_and_the_ranks_may_take_their_time(tmp_path: Path) -> None:
    with node(tmp_path, ["stop", "stop"]) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        report = report_of(process)
    assert (report.exit_code, report.message, report.step) == (75, "after 3 steps", 3)


def test_ctrl_c_stops_like_sigterm(tmp_path: Path) -> None:
    with node(tmp_path, ["stop"]) as process:
        wait_until_ready(process, 1)
        process.send_signal(signal.SIGINT)
        assert report_of(process).exit_code == 75


def test_a_second_signal_ends_what_does_not_stop(tmp_path: Path) -> None:
    with node(tmp_path, ["hang", "hang"]) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        report = report_of(process)
    assert (report.exit_code, report.message) == (143, "asked to stop twice, so the run ended without a checkpoint")


def test_a_failure_while_stopping_ends_who_waits_for_it(tmp_path: Path) -> None:
    with node(tmp_path, ["hang", "stop"], grace=0.5) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        assert report_of(process).exit_code == 75


def test_ranks_know_their_place(tmp_path: Path) -> None:
    told = json.loads(run(tmp_path, ["tell", "tell"]).message)
    assert {name: told[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert told["store"], "rank 0 gets the socket that the launcher holds"
    assert int(told["OMP_NUM_THREADS"]) >= 1
