"""A Training Operator that is installed after the operator is watched as soon as the API server serves its kind."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from builders import Json
from finetune_api.codegen.crd import crd
from operating.process import OperatorProcess
from operating.proxy import Lens, Proxy
from operating.team import Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for_all

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pytorchjobs.kubeflow.org"
HANGS_S = 120
"""What has not happened by then never will."""
QUESTIONS = 2
"""Questions to discovery within which a kind that is served is watched: one is answered, and the watch begins."""


class LateDiscovery(Lens):
    """A CRD is established, and discovery does not serve its kind until the test says so."""

    def __init__(self, kind: str = "pytorchjobs") -> None:
        self.kind = kind
        self.serves, self.watched = threading.Event(), threading.Event()
        self.hidden = threading.Semaphore(0)
        self.asked: list[datetime] = []

    def hides(self, path: str) -> bool:
        hidden = path.startswith("/apis/kubeflow.org/") and not self.serves.is_set()
        if hidden:
            self.asked.append(datetime.now(UTC))
            self.hidden.release()
        return hidden

    def opened(self, kind: str) -> None:
        if kind == self.kind:
            self.watched.set()

    def wait_until_missed(self) -> None:
        """Whoever asks because of the CRD alone has asked in vain: the second question comes much later."""
        while self.hidden.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self.hidden.acquire(timeout=HANGS_S)

    def period(self) -> float:
        """Seconds between two questions of this operator on this machine."""
        return (self.asked[-1] - self.asked[-2]).total_seconds()


def first_watch(plane: ControlPlane, kind: str) -> datetime:
    """When the API server was first asked to let kopf watch a kind, by its audit log."""
    assert plane.audit_log is not None
    entries: list[Json] = [json.loads(line) for line in plane.audit_log.read_text().splitlines()]
    found = (e["requestReceivedTimestamp"] for e in entries if _is_watch(e, kind))
    return datetime.fromisoformat(min(found))


def _is_watch(entry: Json, kind: str) -> bool:
    about, agent = entry.get("objectRef", {}), str(entry.get("userAgent"))
    return (entry["verb"], about.get("resource")) == ("watch", kind) and agent.startswith("kopf")


@pytest.mark.parametrize("one_namespace", [False, True], ids=["the whole cluster", "one namespace"])
def test_a_kind_that_discovery_serves_late_is_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, one_namespace: bool
) -> None:
    with ControlPlane(tmp_path, crds=[crd()], audit=True) as bare:
        team, lens = Team(bare.cluster.api, bare.cluster.namespace()), LateDiscovery()
        settings = {"OWN_NAMESPACE": team.namespace} | ({"WATCH_NAMESPACE": team.namespace} if one_namespace else {})
        with (
            Proxy(bare.cluster.kubeconfig, tmp_path, lens) as proxy,
            OperatorProcess(proxy.kubeconfig, tmp_path, settings) as operator,
        ):
            team.submit()
            team.until(lambda s: condition(s, "PodsReady")[1] == "BackendMissing")
            bare.cluster.install_crd(pytorchjob_crd())
            lens.wait_until_missed()
            served = datetime.now(UTC)
            lens.serves.set()
            wait_for_all(team.api, team.runs, len, timeout_s=HANGS_S)
            assert lens.watched.wait(HANGS_S), "nothing watches PyTorchJobs"
            seconds = (first_watch(bare, lens.kind) - served).total_seconds()
            with capsys.disabled():
                print(f"\nwatched {seconds:.1f} s after it was served; asked every {lens.period():.1f} s")
            assert seconds <= QUESTIONS * lens.period()
            assert operator.answer("healthz") == (200, "ok")


def test_a_kind_that_goes_and_comes_again_is_watched_by_the_same_process(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, crds=[crd(), pytorchjob_crd()]) as plane:
        team, lens = Team(plane.cluster.api, plane.cluster.namespace()), LateDiscovery()
        lens.serves.set()
        with (
            Proxy(plane.cluster.kubeconfig, tmp_path, lens) as proxy,
            OperatorProcess(proxy.kubeconfig, tmp_path, {"OWN_NAMESPACE": team.namespace}) as operator,
        ):
            team.submit()
            wait_for_all(team.api, team.runs, len, timeout_s=HANGS_S)
            team.api.delete(CRD)
            team.until(lambda status: "no PyTorchJob resource" in message(status, "PodsReady"))
            while "finetune_operator_backend_missing 1.0" not in operator.answer("metrics")[1]:
                time.sleep(0.5)
            lens.watched.clear()
            plane.cluster.install_crd(pytorchjob_crd())
            wait_for_all(team.api, team.runs, len, timeout_s=HANGS_S)
            assert lens.watched.wait(HANGS_S), "nothing watches PyTorchJobs"
            assert operator.end() == 0


def test_finetunejobs_that_go_and_come_again_are_watched_by_the_same_process(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, crds=[crd(), pytorchjob_crd()]) as plane:
        team = Team(plane.cluster.api, plane.cluster.namespace())
        lens = LateDiscovery("finetunejobs")
        lens.serves.set()
        with (
            Proxy(plane.cluster.kubeconfig, tmp_path, lens) as proxy,
            OperatorProcess(proxy.kubeconfig, tmp_path, {"OWN_NAMESPACE": team.namespace}) as operator,
        ):
            team.submit()
            wait_for_all(team.api, team.runs, len, timeout_s=HANGS_S)
            team.api.delete(f"{CRD.rpartition('/')[0]}/finetunejobs.finetune.dev")
            while not any(line["message"].startswith(("task failed", "watch ends")) for line in operator.lines()):
                time.sleep(0.5)
            lens.watched.clear()
            plane.cluster.install_crd(crd())
            assert lens.watched.wait(HANGS_S), "nothing watches FinetuneJobs"
            team.submit(name="again")
            wait_for_all(team.api, team.runs, lambda runs: len(runs) == 2, timeout_s=HANGS_S)
            assert operator.end() == 0
