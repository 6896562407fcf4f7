"""Runs follow each other with growing delays, free ones end, and only time on a node counts for a deadline.

The sequences in full are in tests/plan/test_restarts.py; here, on the real API server, is what users met.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from builders import Json
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import STALL_ENV
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet


@pytest.fixture
def team(lonely: Team) -> Team:
    return lonely


@contextmanager
def operating(plane: ControlPlane, folder: Path, team: Team, **settings: str) -> Iterator[OperatorProcess]:
    """An operator for one namespace."""
    places = {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    with OperatorProcess(plane.cluster.kubeconfig, folder, places | settings) as process:
        yield process


def created(pod: Json) -> datetime:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def restarted(times: int) -> Callable[[Json], bool]:
    return lambda status: status.get("restarts") == times


def test_runs_that_fail_in_a_row_follow_each_other_with_growing_delays(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    births, retries = [], []
    with operating(plane, tmp_path, team, BACKOFF_SECONDS="1"):
        team.submit(SMALL | {"lifecycle.maxRestarts": 3})
        for run in range(1, 5):
            [pod] = team.until_run(f"sample-{run}", pods=1)
            births.append(created(pod))
            team.end(pod["metadata"]["name"], Exit.STORAGE_FAILED, "No space left.")
            if run < 4:
                status = team.until(restarted(run))
                retries.append(status.get("retry", {}))
        status = team.until_phase("Failed")
    lasted = (births[-1] - births[0]).total_seconds()
    assert lasted >= 0.8 * (1 + 2 + 4), f"four runs within {lasted} s"
    assert [(r["reason"], r["attempts"], r["allowed"]) for r in retries] == [
        ("StorageFailed", number, 3) for number in (1, 2, 3)
    ]
    due = [datetime.fromisoformat(r["nextTime"]) for r in retries]
    assert all(birth >= time for birth, time in zip(births[1:], due, strict=True))
    assert condition(status, "Failed")[1] == "StorageFailed"


def test_a_run_that_stood_still_restarts_under_the_budget_and_says_so(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team, BACKOFF_SECONDS="0", STALL_SECONDS="90"):
        team.submit(SMALL | {"lifecycle.maxRestarts": 1})
        for run in ("sample-1", "sample-2"):
            [pod] = team.until_run(run, pods=1)
            team.end(pod["metadata"]["name"], Exit.STALLED, "No rank of node 0 made progress for 91 s.")
            assert team.until(restarted(1))["retry"]["reason"] == "Stalled"
        status = team.until_phase("Failed")
    assert {"name": STALL_ENV, "value": "90"} in pod["spec"]["containers"][0]["env"]
    assert condition(status, "Failed")[1] == "Stalled"
    assert "No rank of node 0 made progress for 91 s." in message(status, "Failed")


def test_the_time_of_the_next_run_survives_a_restart_of_the_operator(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team, BACKOFF_SECONDS="10") as operator:
        team.submit(SMALL)
        team.until_run("sample-1", pods=1)
        team.end("sample-1-worker-0", Exit.SOURCE_UNAVAILABLE, "The Hub is busy.")
        status = team.until(lambda s: s.get("retry", {}).get("nextTime"))
        assert "(attempt 1 after SourceUnavailable; 1 of 3 restarts used)" in message(status, "PodsReady")
        team.until_gone(team.pods)
        assert operator.end() == 0
    with operating(plane, tmp_path, team, BACKOFF_SECONDS="0"):
        [pod] = team.until_run("sample-2", pods=1)
        assert created(pod) >= datetime.fromisoformat(status["retry"]["nextTime"])
        assert "nextTime" not in team.until(lambda s: s.get("run") == 2)["retry"]


def test_restarts_that_cost_nothing_and_bring_nothing_end(plane: ControlPlane, team: Team, tmp_path: Path) -> None:
    with operating(plane, tmp_path, team, MAX_FREE_RESTARTS="2"):
        team.submit(SMALL)
        for run in (1, 2, 3):
            team.start(f"sample-{run}", pods=1)
            team.api.delete(f"{team.pods}/sample-{run}-worker-0", gracePeriodSeconds="0")
        status = team.until_phase("Failed")
    assert "Restarts are free, but 2 in a row brought no new checkpoint." in message(status, "Failed")
    assert (status["run"], status.get("restarts", 0)) == (3, 0)


LIMIT_S = 5


def test_a_job_that_was_suspended_for_longer_than_its_deadline_goes_on(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with (
        operating(plane, tmp_path, team),
        Kubelet(plane.cluster.api, plane.certificate, plane.key, team.namespace, tmp_path) as kubelet,
    ):
        team.submit(SMALL | {"lifecycle.activeDeadlineSeconds": LIMIT_S})
        team.until_run("sample-1", pods=1)
        team.edit({"suspend": True})
        team.until_phase("Suspended")
        team.until_gone(team.pods)
        time.sleep(LIMIT_S + 1)  # the time that must not count
        team.edit({"suspend": False})
        team.until_run("sample-2", pods=1)
        team.until(lambda s: s.get("run") == 2 and s["phase"] == "Starting")
        kubelet.run("sample-2-worker-0")
        team.until_phase("Stopping")
        team.api.delete(f"{team.pods}/sample-2-worker-0", gracePeriodSeconds="0")  # its node would end it
        status = team.until_phase("Failed")
    assert condition(status, "Failed")[1] == "DeadlineExceeded", "time on a node does count"
    assert status["active"]["seconds"] >= LIMIT_S


def test_the_operators_default_removes_what_a_finished_job_leaves(
    plane: ControlPlane, team: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, team, TTL_SECONDS_AFTER_FINISHED="1", ACTIVE_DEADLINE_SECONDS="900"):
        team.submit(SMALL)
        team.start(pods=1)
        team.end("sample-1-worker-0")
        status = team.until_phase("Succeeded")
        team.until_gone(team.runs)
    assert (status["resolved"]["ttlSecondsAfterFinished"], status["resolved"]["activeDeadlineSeconds"]) == (1, 900)
