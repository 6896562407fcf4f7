"""The operator under the chart's own roles, on a real API server: nothing is denied, and no right lies idle.

The process runs with a token of the chart's ServiceAccount and with the settings of the chart's Deployment, and
serves every kind of life that a job can have. Then the audit log is held against the roles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from builders import Json
from chart.helm import CHART, NAME, RELEASE, environment, helm, render
from chart.rights import RBAC, allowed, asked, denied
from finetune_api.runtime.exits import Exit
from operating.nodes import ON_GKE, add_node, fall_silent
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message
from testbed.api import ApiError
from testbed.control_plane import ControlPlane
from testbed.pods import bind_pod
from testbed.training_operator import start_training_operator
from testbed.watch import WaitError, wait_for

ENFORCEMENT = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement"
"""Off in plain Kubernetes, on in OpenShift."""
ASKED_BY_ADMISSION = ("update", "finetune.dev", "finetunejobs/finalizers")
"""What no request shows: the API server itself looks for this right when a PyTorchJob is created."""
QUICK = {"CANARY_SECONDS": "1", "CANARY_PATIENCE_SECONDS": "15", "RESYNC_SECONDS": "2"}


@dataclass(frozen=True)
class Installed:
    """The chart on a control plane, and a process in place of its pod."""

    plane: ControlPlane
    home: str
    team: Team
    process: OperatorProcess

    def withdraw(self, resource: str) -> None:
        """Take the rules for a resource out of the operator's role."""
        one = self.plane.cluster.api.find(f"{RBAC}/clusterroles/{NAME}") is None
        role = f"{RBAC}/namespaces/{self.team.namespace}/roles/{NAME}" if one else f"{RBAC}/clusterroles/{NAME}"
        rules = [r for r in self.team.api.get(role)["rules"] if r["resources"] != [resource]]
        self.team.api.patch(role, {"rules": rules})

    def denied(self) -> list[str]:
        return denied(self.plane.requests(), self._user)

    def idle(self) -> list[str]:
        """Rights that nothing has used."""
        uses = asked(self.plane.requests(), self._user)
        rights = allowed(self.plane.cluster.api, self.home, NAME)
        unused = (r for r in rights if not any(map(r.covers, uses)) and r[:3] != ASKED_BY_ADMISSION)
        return sorted(map(str, unused))

    @property
    def _user(self) -> str:
        return f"system:serviceaccount:{self.home}:{NAME}"


@contextmanager
def installed(folder: Path, *, one_namespace: bool) -> Iterator[Installed]:
    """The operator under the chart's roles, in a cluster that has no Training Operator yet."""
    with ControlPlane(folder, audit=True, flags=[ENFORCEMENT]) as plane:
        cluster = plane.cluster
        home, team = cluster.namespace("home"), Team(cluster.api, cluster.namespace("served"))
        # In each of the two cases with a right that a setting adds.
        values: Json = {"settings": {"readNodes": True}}
        if one_namespace:
            values = {"settings": {"watchNamespace": team.namespace, "deadNodeSeconds": 1}}
        with helm(cluster, home) as client:
            client.install(CHART, RELEASE, values)
        wait_until_owners_are_known(team)
        settings = {k.removeprefix("FINETUNE_OPERATOR_"): v for k, v in environment(render(values, home)).items()}
        del settings["HTTP_PORT"]
        with OperatorProcess(cluster.service_account(home, NAME), folder, settings | QUICK) as process:
            yield Installed(plane, home, team, process)


@pytest.mark.parametrize("one_namespace", [False, True], ids=["the whole cluster", "one namespace"])
def test_the_operator_is_denied_nothing_and_needs_every_right(tmp_path: Path, *, one_namespace: bool) -> None:
    with installed(tmp_path, one_namespace=one_namespace) as found:
        try:
            waits_for_the_training_operator(found)
            for life in LIVES:
                life(found.team)
            if one_namespace:
                is_on_a_node_that_dies(found.team)
            else:
                waits_for_the_network_that_nodes_show(found.team)
        except WaitError as error:
            pytest.fail(f"denied: {found.denied()}\n{error}")
        assert found.process.answer("healthz") == (200, "ok")
        assert found.denied() == []
        assert found.idle() == []
        needs_the_right_that_no_request_shows(found)


# Lives


def waits_for_the_training_operator(found: Installed) -> None:
    """The operator was there first."""
    team = found.team
    team.submit(name="early")
    team.until(lambda s: condition(s, "PodsReady")[1] == "BackendMissing", "early")
    start_training_operator(found.plane)
    found.plane.run("kube-controller-manager", found.plane._manager())
    team.start("early-1", "early")
    finish(team, "early")


def fails_and_restarts(team: Team) -> None:
    team.submit(name="bad")
    team.start("bad-1", "bad")
    team.end(team.until_run("bad-1")[0]["metadata"]["name"], Exit.CRASHED)
    team.start("bad-2", "bad")


def is_suspended_and_resumed(team: Team) -> None:
    team.submit(name="paused")
    team.start("paused-1", "paused")
    team.edit({"suspend": True}, "paused")
    gone(team, "paused-1")
    team.edit({"suspend": False}, "paused")
    team.until_run("paused-2")


def is_cancelled(team: Team) -> None:
    team.submit(name="unwanted")
    team.start("unwanted-1", "unwanted")
    team.edit({"cancel": True}, "unwanted")
    team.until_phase("Cancelled", "unwanted")
    gone(team, "unwanted-1")


def loses_its_children_after_its_end(team: Team) -> None:
    team.submit({"lifecycle.ttlSecondsAfterFinished": 1}, "old")
    team.start("old-1", "old")
    finish(team, "old")
    gone(team, "old-1")


def waits_for_a_queue_that_nothing_manages(team: Team) -> None:
    team.submit({"queue.name": "research"}, "queued")
    team.until(lambda s: condition(s, "PodsReady")[1] == "QueueUnmanaged", "queued")


def is_deleted(team: Team) -> None:
    team.submit(name="short")
    team.until_run("short-1")
    team.api.delete(f"{team.jobs}/short")
    gone(team, "short-1")


def is_on_a_node_that_dies(team: Team) -> None:
    add_node(team, "dying")
    team.submit(SMALL, "lost")
    [pod] = team.until_run("lost-1", pods=1)
    bind_pod(team.api, team.namespace, pod["metadata"]["name"], "dying")
    team.start("lost-1", "lost", pods=1)
    fall_silent(team, "dying", "lost-1-worker-0")
    team.edit({"suspend": True}, "lost")
    team.until_phase("Stopping", "lost")
    team.api.delete(f"{team.pods}/lost-1-worker-0", gracePeriodSeconds="1")
    team.until_phase("Suspended", "lost")


def waits_for_the_network_that_nodes_show(team: Team) -> None:
    add_node(team, "fast", resources={"vpc.amazonaws.com/efa": "32"}, labels=ON_GKE)
    team.submit({"network.profile": None}, "undecided")
    status = team.until(lambda s: condition(s, "Accepted")[1] == "NetworkUndecided", "undecided")
    assert (condition(status, "Accepted")[0], status["phase"]) == ("Unknown", "Queued")
    assert "They fit aws-efa, which the administrator has to complete or allow." in message(status, "Accepted")


def needs_the_right_that_no_request_shows(found: Installed) -> None:
    found.withdraw(ASKED_BY_ADMISSION[2])
    found.team.submit(name="barred")
    status = found.team.until(lambda s: condition(s, "PodsReady")[1] == "CreateRefused", "barred")
    assert "cannot set blockOwnerDeletion" in message(status, "PodsReady")


LIVES = (
    fails_and_restarts, is_suspended_and_resumed, is_cancelled, loses_its_children_after_its_end,
    waits_for_a_queue_that_nothing_manages, is_deleted,
)  # fmt: skip


def finish(team: Team, name: str) -> None:
    """All pods end well, the one that reports the success at last."""
    for pod in sorted((p["metadata"]["name"] for p in team.until_run(f"{name}-1")), reverse=True):
        team.end(pod)
    team.until_phase("Succeeded", name)


def gone(team: Team, run: str) -> None:
    wait_for(team.api, f"{team.runs}/{run}", lambda found: found is None)


def wait_until_owners_are_known(team: Team) -> None:
    """The plugin looks for new kinds from time to time, and refuses owners of a kind that it does not know."""
    owner: Json = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "name": "x", "uid": "x"}
    metadata = {"name": "x", "namespace": team.namespace, "ownerReferences": [owner | {"blockOwnerDeletion": True}]}
    give_up = time.monotonic() + 60
    while said := refusal(team, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}):
        assert "cannot find RESTMapping" in said
        assert time.monotonic() < give_up, said
        time.sleep(0.5)


def refusal(team: Team, manifest: Json) -> str:
    """What the server says against an object; nothing, if it would take it."""
    try:
        team.api.create(manifest, dryRun="All")
    except ApiError as error:
        return error.message
    return ""
