"""A change that a watch drops is repaired, a dead watch begins again, and no failing task ends the process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builders import Json
from finetune_api.codegen.crd import crd
from operating.hostile import LARGE, peak_mib
from operating.process import OperatorProcess
from operating.proxy import Lens, Proxy
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for_all

HANGS_S = 120
"""What has not happened by then never will."""
QUIET_S = 4
"""More than the operator waits before it writes mere text."""
CADENCE = {"RESYNC_SECONDS": "3"}
LISTED = 'api_requests_total{code="200",resource="pods",verb="list"}'
LARGE_PODS = 40
KINDS = {"finetunejobs": "jobs", "pytorchjobs": "runs", "pods": "pods", "events": "events"}
"""Kinds by their names in the API, and in metrics."""


class Deaf(Lens):
    """From a moment on, the operator hears nothing of one kind, or too little; bookmarks and Leases pass."""

    def __init__(self, kind: str) -> None:
        self.kind, self.since, self.drops, self.heals = kind, float("inf"), float("inf"), False

    async def told(self, kind: str, opened: float, event: Json) -> Json | None:
        spared = event["type"] == "BOOKMARK" or kind != self.kind or (self.heals and opened >= self.since)
        if spared or time.monotonic() < self.since or self.drops <= 0:
            return event
        self.drops -= 1
        return None


class Garbled(Lens):
    """Discovery answers with what no server should say."""

    garbles = True

    def answers(self, path: str) -> Json | None:
        return {} if self.garbles and path.startswith("/apis/kubeflow.org/") else None


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without an operator."""
    with ControlPlane(tmp_path_factory.mktemp("watches"), crds=[crd(), pytorchjob_crd()]) as found:
        yield found


@contextmanager
def operating(plane: ControlPlane, folder: Path, lens: Lens) -> Iterator[tuple[Team, OperatorProcess]]:
    """An operator behind a proxy, for one namespace in which there is a job."""
    team = Team(plane.cluster.api, plane.cluster.namespace())
    settings = CADENCE | {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    with (
        Proxy(plane.cluster.kubeconfig, folder, lens) as proxy,
        OperatorProcess(proxy.kubeconfig, folder, settings) as operator,
    ):
        team.submit()
        yield team, operator


def objects(team: Team) -> dict[str, str]:
    """An object of each kind that belongs to the job, by kind."""
    [run] = wait_for_all(team.api, team.runs, len, timeout_s=HANGS_S)
    metadata = {"name": "sample", "namespace": team.namespace, "labels": run["metadata"]["labels"]}
    container = {"name": team.backend.container, "image": "none"}
    team.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    about = {k: run["metadata"][k] for k in ("name", "namespace", "uid")}
    involved = {"apiVersion": run["apiVersion"], "kind": run["kind"], **about}
    event = {"involvedObject": involved, "reason": team.backend.refusal_reason, "message": "too many"}
    team.api.create({"apiVersion": "v1", "kind": "Event", "metadata": metadata, **event})
    core = f"/api/v1/namespaces/{team.namespace}"
    return {
        "finetunejobs": f"{team.jobs}/sample", "pytorchjobs": f"{team.runs}/{run['metadata']['name']}",
        "pods": f"{core}/pods/sample", "events": f"{core}/events/sample",
    }  # fmt: skip


def until_deleted(team: Team) -> None:
    """Until the operator has deleted the run; nothing collects what is deleted here."""
    gone = lambda runs: all("deletionTimestamp" in run["metadata"] for run in runs)  # noqa: E731
    wait_for_all(team.api, team.runs, gone, timeout_s=HANGS_S)


def until_quiet(team: Team) -> None:
    """Until the operator has written what it had to: its next write would make up for an event that was dropped."""
    version, since = "", time.monotonic()
    while time.monotonic() - since < QUIET_S:
        found = team.api.get(f"{team.jobs}/sample")["metadata"]["resourceVersion"]
        if found != version:
            version, since = found, time.monotonic()
        time.sleep(0.2)


def touch(team: Team, path: str) -> None:
    team.api.patch(path, {"metadata": {"annotations": {"touched": str(time.monotonic_ns())}}})


def count(operator: OperatorProcess, metric: str) -> float:
    lines = operator.answer("metrics")[1].splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"finetune_operator_{metric} ")), 0.0)


def until(done: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + HANGS_S
    while not done():
        assert time.monotonic() < end, why
        time.sleep(0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_that_a_watch_drops_is_found_and_counted_once(
    plane: ControlPlane, tmp_path: Path, kind: str
) -> None:
    lens, missed = Deaf(kind), f'watch_missed_total{{kind="{KINDS[kind]}"}}'
    lens.drops = 1
    with operating(plane, tmp_path, lens) as (team, operator):
        path = objects(team)[kind]
        until_quiet(team)
        lens.since = time.monotonic()
        touch(team, path)
        until(lambda: count(operator, missed) == 1, "nothing found what was dropped")
        touch(team, path)
        team.edit({"suspend": True})
        until_deleted(team)
        assert count(operator, missed) == 1, "what is repaired is not missed again"
        assert count(operator, "watch_restarts_total") == 0


def test_the_repair_of_a_small_object_reads_none_of_the_large_ones_around_it(
    plane: ControlPlane, tmp_path: Path
) -> None:
    lens, missed = Deaf("pods"), 'watch_missed_total{kind="pods"}'
    with operating(plane, tmp_path, lens) as (team, operator):
        path = objects(team)["pods"]
        large = sum(add_large_pod(team, path, number) for number in range(LARGE_PODS)) / 2**20
        until_quiet(team)
        before, lens.drops, lens.since = peak_mib(operator.pid), 1, time.monotonic()
        touch(team, path)
        until(lambda: count(operator, missed) == 1, "nothing found what was dropped")
        end = count(operator, LISTED) + 3  # it is read, and compared again
        until(lambda: count(operator, LISTED) >= end, "nothing compares")
        assert peak_mib(operator.pid) - before < large / 2


def add_large_pod(team: Team, like: str, number: int) -> int:
    """One more pod of the job, as large as the server takes; its bytes."""
    pod = team.api.get(like)
    metadata = {"name": f"large-{number}", "namespace": team.namespace, "labels": pod["metadata"]["labels"]}
    container = {"name": team.backend.container, "image": "none"}
    team.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    team.api.patch(f"{team.pods}/large-{number}/status", {"status": {"message": "m" * LARGE}})
    return LARGE


def test_a_suspension_that_no_watch_tells_of_is_carried_out(plane: ControlPlane, tmp_path: Path) -> None:
    lens = Deaf("finetunejobs")
    with operating(plane, tmp_path, lens) as (team, operator):
        objects(team)
        until_quiet(team)
        lens.since = time.monotonic()
        team.edit({"suspend": True})
        until_deleted(team)
        assert count(operator, 'watch_missed_total{kind="jobs"}')


@pytest.mark.parametrize("kind", KINDS)
def test_a_watch_that_delivers_nothing_begins_again_in_the_process(
    plane: ControlPlane, tmp_path: Path, kind: str
) -> None:
    lens = Deaf(kind)
    lens.heals = True
    with operating(plane, tmp_path, lens) as (team, operator):
        path = objects(team)[kind]
        until_quiet(team)
        lens.since = time.monotonic()

        def restarted() -> bool:
            touch(team, path)
            return count(operator, "watch_restarts_total") == 1

        until(restarted, "nothing noticed that the watch delivers nothing")
        team.edit({"suspend": True})
        until_deleted(team)
        assert operator.answer("healthz") == (200, "ok")
        assert operator.end() == 0


def test_a_watch_that_stays_dead_ends_the_process_with_3(plane: ControlPlane, tmp_path: Path) -> None:
    lens = Deaf("pods")
    with operating(plane, tmp_path, lens) as (team, operator):
        path = objects(team)["pods"]
        lens.since = time.monotonic()

        def ended() -> bool:
            touch(team, path)
            return operator.answer("healthz")[0] == 0

        until(ended, "nothing noticed that the watch stays dead")
        assert operator.wait_ended(HANGS_S) == 3


def test_a_quiet_cluster_does_not_look_dead(plane: ControlPlane, tmp_path: Path) -> None:
    with operating(plane, tmp_path, Lens()) as (_, operator):  # without a pod or an event
        end = count(operator, LISTED) + 5
        until(lambda: count(operator, LISTED) >= end, "nothing compares")
        assert count(operator, "watch_restarts_total") == 0
        assert "watch_missed_total{" not in operator.answer("metrics")[1]
        assert "task_failures_total{" not in operator.answer("metrics")[1]


def test_a_task_that_fails_starts_again_and_the_process_goes_on(plane: ControlPlane, tmp_path: Path) -> None:
    lens = Garbled()
    lens.garbles = False
    with operating(plane, tmp_path, lens) as (team, operator):
        objects(team)
        lens.garbles = True
        failures = 'task_failures_total{task="discovery"}'
        until(lambda: count(operator, failures) >= 2, "discovery did not fail, or did not start again")
        lens.garbles = False
        team.edit({"suspend": True})
        until_deleted(team)
        assert operator.end() == 0
