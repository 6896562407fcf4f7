"""The operator notices that it does not see, goes on where it can, and ends where it cannot."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import Json
from chaos.bed import Bed
from chaos.disturbances import Broken, Gone, Silent
from chaos.lives import LIVES
from chaos.rows import Outcome, disturbed, same
from finetune_api.runtime.exits import Exit
from operating.plane import unserved
from operating.process import OperatorProcess
from operating.proxy import Proxy
from operating.team import Team, condition
from testbed.api import ApiError
from testbed.control_plane import ControlPlane
from testbed.watch import wait_for, wait_for_all

pytestmark = pytest.mark.timeout(900)
QUICK = {"RESYNC_SECONDS": "6", "CANARY_SECONDS": "5", "CANARY_PATIENCE_SECONDS": "45"}
"""A sixth to a third of what is installed."""
WOUNDED = Path(__file__).with_name("wounded.py")


def _alone(team: Team) -> dict[str, str]:
    return {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}


def _team(plane: ControlPlane) -> Team:
    return Team(plane.cluster.api, plane.cluster.namespace())


def _seconds(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def outage(bed: Bed, folder: Path) -> float:
    """Seconds after a minute's outage, which began amid a restart of the gang, until the operator is done with it.

    What is left then is the garbage collector's, whose own pauses after such an outage are longer than a minute.
    """
    with unserved(folder) as plane:
        team = _team(plane)
        with OperatorProcess(plane.cluster.kubeconfig, folder) as operator:
            team.submit()
            team.start("sample-1")
            team.end("sample-1-worker-0", Exit.CRASHED, "boom")
            team.until(lambda s: condition(s, "Training")[1] == "Restarting")
            plane.apiserver.stop(grace_s=0)
            time.sleep(60)  # the outage itself
            assert operator.answer("healthz")[0] == 200, "the server's being down is no reason to start anew"
            plane.apiserver.start()
            plane.apiserver.wait_ready()
            seconds = _seconds(lambda: _catch_up(team))
            team.start("sample-2")
            return seconds


def _catch_up(team: Team) -> None:
    """The restart that was begun goes on, and a new job is served."""
    while not all(map(_is_served, (team.jobs, team.runs, team.pods), [team] * 3)):
        time.sleep(0.1)
    team.submit(name="other")
    wait_for_all(team.api, team.runs, lambda runs: "other-1" in _names(runs), timeout_s=team.patience_s)
    run = f"{team.runs}/sample-1"
    wait_for(team.api, run, lambda run: not run or "deletionTimestamp" in run["metadata"], timeout_s=team.patience_s)


def _is_served(path: str, team: Team) -> bool:
    """A server that is ready may still be reading its storage, and then asks to come back."""
    try:
        team.api.get(path)
    except ApiError as error:
        if error.status != 429:
            raise
        return False
    return True


def _names(found: list[Json]) -> set[str]:
    return {entry["metadata"]["name"] for entry in found}


@pytest.mark.trial(work=outage, idle=True)
def test_a_minute_without_an_api_server_is_caught_up_within_another(outcome: float) -> None:
    assert outcome <= 60


def silence(bed: Bed, folder: Path) -> float:
    """Seconds from a suspension that no stream tells of until it is carried out."""
    team, lens = _team(bed.plane), Silent()
    with (
        Proxy(bed.plane.cluster.kubeconfig, folder, lens) as proxy,
        OperatorProcess(proxy.kubeconfig, folder, _alone(team)),
    ):
        team.submit()
        team.start("sample-1")
        lens.since = time.monotonic()
        team.edit({"suspend": True})
        return _seconds(lambda: team.until_gone(team.runs))


@pytest.mark.trial(work=silence, idle=True)
def test_a_change_after_the_watches_went_silent_is_handled(outcome: float) -> None:
    assert 5 < outcome <= 90, "silent indeed, and not for long"


def wound(bed: Bed, folder: Path, resource: str) -> int:
    """Exit code after SIGTERM of an operator that lost a watch and began it again."""
    team = _team(bed.plane)
    program = (str(WOUNDED), resource)
    with OperatorProcess(bed.plane.cluster.kubeconfig, folder, _alone(team) | QUICK, program) as operator:
        team.submit()
        team.start("sample-1")
        objects = [f"{team.jobs}/sample", f"{team.runs}/sample-1", f"{team.pods}/sample-1-worker-0"]
        operator.signal(signal.SIGUSR1)
        while "finetune_operator_watch_restarts_total 1.0" not in operator.answer("metrics")[1]:
            for path in objects:
                team.api.patch(path, {"metadata": {"annotations": {"touched": str(time.monotonic_ns())}}})
            time.sleep(1)
        team.edit({"suspend": True})
        team.until_gone(team.runs)
        return operator.end()


@pytest.mark.trial(work=wound, idle=True)
@pytest.mark.parametrize("resource", ["finetunejobs.v1alpha1", "pytorchjobs.v1", "pods.v1", "leases.v1"])
def test_an_operator_that_has_lost_a_watch_begins_it_again(resource: str, outcome: int) -> None:
    assert outcome == 0


def error(bed: Bed, folder: Path) -> int:
    """Exit code after SIGTERM of an operator that was told of an error of the server in the middle of a watch."""
    team, lens = _team(bed.plane), Broken()
    with (
        Proxy(bed.plane.cluster.kubeconfig, folder, lens) as proxy,
        OperatorProcess(proxy.kubeconfig, folder, _alone(team)) as operator,
    ):
        team.submit()
        team.start("sample-1")
        lens.now.set()
        team.edit({"suspend": True})
        team.until_gone(team.runs)
        return operator.end()


@pytest.mark.trial(work=error, idle=True)
def test_an_error_amid_a_watch_is_survived(outcome: int) -> None:
    assert outcome == 0


def gone(bed: Bed, folder: Path, life: str) -> Outcome:
    return disturbed(bed.plane, bed.ledger, folder, life, Gone(), bed.references[life])


@pytest.mark.trial(work=gone)
@pytest.mark.parametrize("life", LIVES)
def test_streams_that_end_with_410_lose_nothing_and_double_nothing(life: str, outcome: Outcome, bed: Bed) -> None:
    same(outcome, bed.references[life])
    assert outcome.codes == (0,)
