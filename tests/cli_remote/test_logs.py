"""Lines of all pods of a job: tagged, in order of time, followed over pods and broken connections."""

from __future__ import annotations

import time

import pytest

from cli_remote.calls import Console
from cli_remote.test_life import step
from finetune_cli.remote.pod_logs import PAUSE_SECONDS
from operating.team import Team
from testbed.kubelet import Kubelet

MASTER, WORKER = "sample-1-worker-0", "sample-1-worker-1"


@pytest.fixture
def running(team: Team, kubelet: Kubelet) -> Kubelet:
    """A job with two pods that run and have said something."""
    team.submit()
    team.until_run("sample-1")
    for pod in (MASTER, WORKER):
        kubelet.run(pod)
    kubelet.say(MASTER, "loading", step(1))
    kubelet.say(WORKER, "ready")
    kubelet.say(MASTER, step(2))
    return kubelet


ONCE = {
    "all pods": ((), ["[node 0] loading", "[node 0] step 1/4  loss 2.0000  lr 0.0001  50 tokens/s  30s left",
                      "[node 1] ready", "[node 0] step 2/4  loss 1.0000  lr 0.0001  50 tokens/s  20s left"]),
    "one node": (("--node", "1"), ["[node 1] ready"]),
    "the last line of each": (("--tail", "1"), [
        "[node 1] ready", "[node 0] step 2/4  loss 1.0000  lr 0.0001  50 tokens/s  20s left"]),
    "records as they are": (("--node", "0", "--tail", "1", "--raw"), [f"[node 0] {step(2)}"]),
    "the run by its number": (("--run", "1", "--node", "1"), ["[node 1] ready"]),
}  # fmt: skip


def test_logs_come_tagged_and_in_order_of_time(running: Kubelet, console: Console) -> None:
    for case, (arguments, lines) in ONCE.items():
        done = console("logs", "sample", *arguments)
        assert (done.code, done.out.splitlines(), done.err) == (0, lines, ""), case


def test_what_is_not_there_is_refused_with_what_is(running: Kubelet, console: Console) -> None:
    for arguments, reason, message in (
        (("--run", "2"), "NoSuchRun", "The pods of run 2 were deleted with their logs. The current run is 1."),
        (("--node", "2"), "NoSuchNode", "Run 1 has no node 2."),
    ):
        done = console("logs", "sample", *arguments)
        assert (done.code, done.out) == (2, "")
        assert f"{message} [{reason}]" in done.err


def test_pods_that_have_not_started_have_no_log_yet(team: Team, console: Console) -> None:
    team.submit()
    team.until_run("sample-1")
    team.until_phase("Starting")
    done = console("logs", "sample")
    assert (done.code, done.out) == (1, "")
    assert "The job's pods have not started yet. [NotStarted]\n  remedy: `finetune diagnose sample`" in done.err


def test_a_job_without_pods_has_no_log_yet(team: Team, console: Console) -> None:
    team.submit({"suspend": True})
    team.until_phase("Suspended")
    done = console("logs", "sample")
    assert (done.code, done.out) == (1, "")
    assert "The job has no pods yet. [NotStarted]" in done.err


def test_following_goes_on_over_pods_and_restarts_until_the_job_is_over(
    running: Kubelet, team: Team, console: Console
) -> None:
    with console.start("logs", "sample", "-f") as following:
        following.until("[node 1] ready")
        running.say(WORKER, "one more")
        following.until("[node 1] one more")
        team.api.delete(f"{team.pods}/{WORKER}", gracePeriodSeconds="0")
        for pod in (MASTER, WORKER):
            running.end_log(pod)
        team.api.delete(f"{team.pods}/{MASTER}", gracePeriodSeconds="0")
        team.until_run("sample-2")
        for pod in ("sample-2-worker-0", "sample-2-worker-1"):
            running.say(pod, f"I am {pod}")
            running.run(pod)
        following.until("[node 0] I am sample-2-worker-0")
        following.until("[node 1] I am sample-2-worker-1")
        running.say("sample-2-worker-0", "the end")
        for pod in ("sample-2-worker-0", "sample-2-worker-1"):
            running.end_log(pod)
        team.end("sample-2-worker-0")
        assert following.ended() == 0
    assert following.lines.count("[node 1] one more") == 1
    assert "[node 0] the end" in following.lines


def test_a_stream_that_breaks_is_taken_up_without_losing_or_repeating_a_line(
    running: Kubelet, team: Team, console: Console
) -> None:
    with console.start("logs", "sample", "-f", "--node", "0") as following:
        for number in range(20):
            running.say(MASTER, f"line {number}")
            following.until(f"line {number}")
            if number % 5 == 4:
                running.break_logs()
        running.end_log(MASTER)
        team.end(MASTER)
        assert following.ended() == 0
    said = [line for line in following.lines if " line " in line]
    assert said == [f"[node 0] line {number}" for number in range(20)]


def test_a_log_that_cannot_be_read_is_said_once_and_tried_again(
    running: Kubelet, team: Team, console: Console
) -> None:
    with console.start("logs", "sample", "-f", "--node", "0") as following:
        following.until("loading")
        running.failing = True
        running.break_logs()
        said = following.until("the log of node 0 cannot be read")
        assert said.endswith("the disk of this node is broken; retrying")
        time.sleep(3 * PAUSE_SECONDS)
        running.failing = False
        running.say(MASTER, "here again")
        following.until("here again")
        running.end_log(MASTER)
        team.end(MASTER)
        assert following.ended() == 0
    assert sum("cannot be read" in line for line in following.lines) == 1
