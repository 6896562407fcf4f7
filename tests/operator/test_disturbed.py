"""What restarts and late installations leave behind: the same as an undisturbed life. More in tests/chaos."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builders import Json
from finetune_api.codegen.crd import crd
from operating.process import OperatorProcess
from operating.proxy import Lens, Place, Proxy
from operating.team import Team, condition
from testbed.api import ApiError
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet
from testbed.pods import run_pod
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for_all


@contextmanager
def operating(plane: ControlPlane, folder: Path, team: Team) -> Iterator[OperatorProcess]:
    """An operator for one namespace."""
    settings = {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    with OperatorProcess(plane.cluster.kubeconfig, folder, settings) as process:
        yield process


def test_a_training_operator_that_is_installed_later_is_noticed(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, crds=[crd()]) as bare:
        team = Team(bare.cluster.api, bare.cluster.namespace())
        with OperatorProcess(bare.cluster.kubeconfig, tmp_path) as operator:
            team.submit()
            status = team.until_phase("Queued")
            assert condition(status, "Accepted")[0] == "True"
            assert condition(status, "PodsReady") == ("False", "BackendMissing")
            assert "finetune_operator_backend_missing 1.0" in operator.answer("metrics")[1]
            bare.cluster.install_crd(pytorchjob_crd())
            team.until_phase("Starting")
            wait_for_all(team.api, team.runs, lambda runs: [r["metadata"]["name"] for r in runs] == ["sample-1"])
            team.until_event("BackendMissing")


def test_a_finished_job_creates_nothing_after_a_restart_of_the_operator(
    plane: ControlPlane, lonely: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, lonely):
        lonely.submit()
        lonely.start()
        lonely.end("sample-1-worker-0")
        ended = lonely.until_phase("Succeeded")
    lonely.api.delete(f"{lonely.runs}/sample-1", propagationPolicy="Foreground")
    lonely.until_gone(lonely.runs)
    with operating(plane, tmp_path, lonely):
        lonely.submit(name="other")
        lonely.until_run("other-1")
        lonely.api.patch(f"{lonely.jobs}/sample", {"metadata": {"labels": {"touched": "yes"}}})
        lonely.submit(name="another")
        lonely.until_run("another-1")
        assert sorted(lonely.run_names()) == ["another-1", "other-1"]
        assert lonely.status() == ended


def test_sigterm_lets_looks_finish_and_ends_with_0(plane: ControlPlane, lonely: Team, tmp_path: Path) -> None:
    names = [f"job-{i}" for i in range(20)]
    with operating(plane, tmp_path, lonely) as operator:
        for name in names:
            lonely.submit({"compute.nodes": 1}, name=name)
        wait_for_all(lonely.api, lonely.runs, len)
        assert operator.end() == 0
        claimed = {n for n in names if lonely.status(n).get("run")}
        assert {f"{n}-1" for n in claimed} == set(lonely.run_names()), "what was claimed was created"
    with operating(plane, tmp_path, lonely):
        wait_for_all(lonely.api, lonely.runs, lambda runs: len(runs) == len(names))
        assert sorted(lonely.run_names()) == sorted(f"{n}-1" for n in names)


def replace(team: Team, pod: str) -> None:
    """Another pod of that name: the Training Operator's, or the same by us, since it may take minutes over it.

    Where the Training Operator sees the pod while it is being deleted, it fails the run and deletes all its pods.
    """
    old = team.api.get(f"{team.pods}/{pod}")
    kept = ("name", "namespace", "labels", "annotations", "ownerReferences")
    new = {**old, "metadata": {k: v for k, v in old["metadata"].items() if k in kept}}
    team.api.delete(f"{team.pods}/{pod}", gracePeriodSeconds="0")
    try:
        team.api.create(new)
    except ApiError as error:
        assert error.reason == "AlreadyExists", error  # noqa: PT017 - the other answer that is fine
    is_new = lambda found: found["metadata"]["name"] == pod and found["metadata"]["uid"] != old["metadata"]["uid"]  # noqa: E731
    wait_for_all(team.api, team.pods, lambda found: not found or any(map(is_new, found)))


def test_a_pod_that_was_replaced_while_nobody_looked_restarts_the_gang(
    plane: ControlPlane, lonely: Team, tmp_path: Path
) -> None:
    with operating(plane, tmp_path, lonely) as operator:
        lonely.submit()
        lonely.start()
        operator.signal(signal.SIGSTOP)
        replace(lonely, "sample-1-worker-1")
        operator.signal(signal.SIGCONT)
        lonely.until_run("sample-2")
        status = lonely.until(lambda s: s.get("run") == 2)
    assert not status.get("restarts"), "a lost pod is not the job's fault"


def test_a_pod_that_was_replaced_and_runs_when_the_operator_comes_back_restarts_the_gang(
    plane: ControlPlane, lonely: Team, tmp_path: Path
) -> None:
    """The Training Operator is down as well: it would fail the run if it saw a running pod go."""
    backend = plane.processes["training-operator"]
    with operating(plane, tmp_path, lonely):
        lonely.submit()
        lonely.start()
    backend.stop()
    try:
        replace(lonely, "sample-1-worker-1")
        run_pod(lonely.api, lonely.namespace, "sample-1-worker-1")
        with operating(plane, tmp_path, lonely):
            status = lonely.until(lambda s: s.get("run") == 2)
    finally:
        backend.start()
        backend.wait_ready()
    assert not status.get("restarts"), "a lost pod is not the job's fault"


class DiesOfAVerdict(Lens):
    """The operator dies when the API server has its verdict about a job, before it has deleted anything."""

    operator: OperatorProcess

    def wrote(self, at: Place, answer: Json) -> bool:
        status = answer.get("status")
        said = status.get("conditions", ()) if isinstance(status, dict) else ()
        verdict = any(each["type"] in ("FailureTarget", "Failed") for each in said)
        if verdict:
            self.operator.signal(signal.SIGKILL)
        return verdict


@pytest.mark.parametrize("deadline", [None, 1], ids=["cancelled", "a deadline"])
def test_pods_that_wait_hold_no_quota_although_the_operator_dies_of_its_verdict(
    plane: ControlPlane, lonely: Team, tmp_path: Path, deadline: int | None
) -> None:
    lens = DiesOfAVerdict()
    with (
        Proxy(plane.cluster.kubeconfig, tmp_path, lens) as proxy,
        Kubelet(plane.cluster.api, plane.certificate, plane.key, lonely.namespace, tmp_path) as kubelet,
    ):
        places = {"WATCH_NAMESPACE": lonely.namespace, "OWN_NAMESPACE": lonely.namespace}
        with OperatorProcess(proxy.kubeconfig, tmp_path, places) as lens.operator:
            lonely.submit({"lifecycle.activeDeadlineSeconds": deadline} if deadline else {})
            lonely.until_run("sample-1")
            if deadline:
                kubelet.run("sample-1-worker-0")  # only time on a node counts
            else:
                lonely.edit({"cancel": True})
            assert lens.operator.wait_ended(90) == -signal.SIGKILL
        with operating(plane, tmp_path, lonely):
            wait_for_all(lonely.api, lonely.pods, _none_waits)
            if deadline:  # its node would end it
                lonely.api.delete(f"{lonely.pods}/sample-1-worker-0", gracePeriodSeconds="0")
            lonely.until_gone(lonely.pods)
            lonely.until_gone(lonely.runs)
            lonely.until_phase("Failed" if deadline else "Cancelled")


def _none_waits(pods: list[Json]) -> bool:
    return all(pod["status"]["phase"] != "Pending" for pod in pods)
