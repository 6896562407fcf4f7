"""The launcher: exit codes are kept, causes are named, signals are forwarded, no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport, parse
from finetune_trainer.heartbeat import Heartbeats, join
from finetune_trainer.launch import wait_for_ranks
from finetune_trainer.rank_processes import RankProcesses
from trainer.launcher_node import COMMAND

TESTS = Path(__file__).parents[1]
LONG = 60.0
"""A grace period that no test waits for."""


@contextmanager
def node(folder: Path, roles: list[str], grace: float = LONG, stall: float = LONG) -> Iterator[subprocess.Popen[str]]:
    """A running launcher; killed when the block ends, with its ranks, which do not end with it as real ones do."""
    command = [*COMMAND, json.dumps(roles), str(grace), str(folder), str(stall)]
    variables = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            ranks = ranks_of(process.pid)
            process.kill()
            for pid in ranks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


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


def ranks_of(launcher: int) -> list[int]:
    """Processes of the ranks, in order."""
    tasks = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in tasks.read_text().split()] if tasks.exists() else []


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_hangup_stop_like_sigterm(tmp_path: Path, number: signal.Signals) -> None:
    with node(tmp_path, ["stop"]) as process:
        wait_until_ready(process, 1)
        process.send_signal(number)
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


@pytest.mark.parametrize("roles", [["wait", "wait"], ["hang", "wait"]], ids=["all", "one"])
def test_a_signal_kills_ranks_that_still_wait_for_their_peers(tmp_path: Path, roles: list[str]) -> None:
    with node(tmp_path, roles) as process:
        wait_until_ready(process, 2)
        process.send_signal(signal.SIGTERM)
        report = report_of(process)
    assert (report.exit_code, report.message) == (75, "stopped before training started")


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


STALL = 2.0
"""Seconds in which scripted ranks at work record many heartbeats; to start, they have six times as long."""


def test_ranks_that_never_start_to_work_are_a_stall(tmp_path: Path) -> None:
    with node(tmp_path, ["wait", "wait"], stall=0.1) as process:
        report = report_of(process)
    assert (report.exit_code, report.reason) == (Exit.STALLED, "Stalled")
    assert "while it started or saved" in report.message


def test_with_zero_no_silence_is_a_stall(tmp_path: Path) -> None:
    with node(tmp_path, ["hang"], stall=0) as process:
        wait_until_ready(process, 1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(STALL)


def test_time_in_which_launcher_and_ranks_are_suspended_is_no_stall(tmp_path: Path) -> None:
    with node(tmp_path, ["work", "work"], stall=STALL) as process:
        wait_until_ready(process, 2)
        everybody = [process.pid, *ranks_of(process.pid)]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in everybody:
                os.kill(pid, number)
            time.sleep(3 * STALL)  # after SIGCONT the launcher has the time to be wrong
        process.send_signal(signal.SIGTERM)
        assert report_of(process).exit_code == Exit.STOPPED


def test_a_rank_that_waits_for_the_reader_of_its_lines_is_no_stall(tmp_path: Path) -> None:
    with node(tmp_path, ["print"], stall=STALL) as process:
        wait_until_ready(process, 1)
        time.sleep(3 * STALL)  # nobody reads
        assert report_of(process).exit_code == Exit.OK


class Noted(RankProcesses):
    """Processes whose signals are noted."""

    def send(self, number: signal.Signals) -> None:
        self.sent = [*getattr(self, "sent", ()), number]
        super().send(number)


HUP, TERM, INT, KILL = signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        ([HUP] * 7, [TERM]),
        ([TERM, HUP, HUP], [TERM]),
        ([HUP, TERM], [TERM, KILL]),
        ([HUP, HUP, INT], [TERM, KILL]),
        ([TERM, HUP, INT], [TERM, KILL]),
    ],
)
def test_hangups_ask_once_and_never_kill(
    tmp_path: Path, received: list[signal.Signals], sent: list[signal.Signals]
) -> None:
    """The kernel sends one for each thread of a `finetune run` that is killed."""
    ranks = Noted(tmp_path, Heartbeats(tmp_path, 1))
    join(tmp_path, 0).connected()
    ranks.start(0, ["sleep", "1000"], os.environ, None)
    for number in received:
        ranks.events.put(number)
    assert wait_for_ranks(ranks, LONG).stop_signals == len(sent)
    assert ranks.sent == sent


class Unkillable(RankProcesses):
    """Processes that a signal does not reach, as those that wait in the kernel for a volume."""

    def send(self, number: signal.Signals) -> None:
        """Nothing arrives."""


def test_ranks_that_even_a_kill_does_not_end_are_given_up(tmp_path: Path) -> None:
    ranks = Unkillable(tmp_path, Heartbeats(tmp_path, 1))
    join(tmp_path, 0).connected()
    ranks.start(0, ["sleep", "1000"], os.environ, None)
    ranks.events.put(signal.SIGTERM)
    ranks.events.put(signal.SIGTERM)
    try:
        outcome = wait_for_ranks(ranks, LONG, kill_seconds=0.1)
    finally:
        ranks.processes[0].kill()
    assert (outcome.exits, outcome.stop_signals, outcome.killed) == ([], 2, True)
