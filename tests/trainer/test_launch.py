"""The launcher: exit codes are kept, causes are named, signals are forwarded, no process is left."""

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
"""A grace period that no test waits for."""


@contextmanager
def node(folder: Path, roles: list[str], grace: float = LONG) -> Iterator[subprocess.Popen[str]]:
    """A running launcher; killed when the block ends."""
    command = [*COMMAND, json.dumps(roles), str(grace), str(folder)]
    variables = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def run(folder: Path, roles: list[str], grace: float = LONG) -> FinalReport:
    """The report of a node that receives no signal."""
    with node(folder, roles, grace) as process:
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
    ("roles", "code", "rank", "message"),
    [
        pytest.param(
            ["environment", "fail 7"], 7, 1, "rank 1 failed", id="a rank that exits with 7 makes the launcher 7"
        ),
        pytest.param(["fail 9", "fail 3"], 3, 1, "rank 1 failed", id="a rank that lost a peer is not the cause"),
        pytest.param(["fail 9", "fail 9"], 9, None, "failed", id="unless no other failure is known"),
        pytest.param(["die"], 137, 0, "killed by signal 9", id="a rank that is killed is named, with the signal"),
        pytest.param(
            ["fail 9", "die"], 137, 1, "raise pods.memory", id="a killed rank takes precedence over a lost peer"
        ),
        pytest.param(
            ["exit 0"], 1, 0, "without a report", id="an exit without a report is a crash, even with code 0"
        ),
        pytest.param(
            ["exit 42"], 42, 0, "rank 0 on node 0 exited without a report", id="an unknown code is passed on"
        ),
    ],
)
def test_a_failure_keeps_its_code_and_its_cause(
    tmp_path: Path, roles: list[str], code: int, rank: int | None, message: str
) -> None:
    report = run(tmp_path, roles)
    assert (report.exit_code, message in report.message) == (code, True), report.message
    assert report.cause is not None
    assert rank is None or report.cause.rank == rank


def test_ranks_that_hang_after_a_failure_are_ended_and_not_blamed(tmp_path: Path) -> None:
    report = run(tmp_path, ["hang", "fail 7", "hang"], grace=0.5)
    assert (report.exit_code, report.cause and report.cause.rank) == (7, 1)


def test_a_signal_is_forwarded_and_the_ranks_finish_their_step(tmp_path: Path) -> None:
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


def test_a_second_signal_kills_ranks_that_do_not_stop(tmp_path: Path) -> None:
    with node(tmp_path, ["hang", "hang"]) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        report = report_of(process)
    assert (report.exit_code, report.message) == (
        143,
        "received a second stop signal; the run was killed without saving a checkpoint",
    )


def test_a_failure_while_stopping_ends_the_waiting_ranks(tmp_path: Path) -> None:
    with node(tmp_path, ["hang", "stop"], grace=0.5) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        assert report_of(process).exit_code == 75


def test_ranks_get_their_environment(tmp_path: Path) -> None:
    variables = json.loads(run(tmp_path, ["environment", "environment"]).message)
    assert {name: variables[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    assert variables["store"], "rank 0 gets the socket that the launcher holds"
    assert int(variables["OMP_NUM_THREADS"]) >= 1
