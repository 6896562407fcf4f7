"""Nobody's objects stop the service of others, and none is taken for a job's own unless its owners say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import Json
from cli_remote.calls import Console
from finetune_api.codegen.crd import crd
from finetune_api.resource import names
from finetune_api.runtime.exits import Exit
from finetune_plan import job_settings, results
from operating.hostile import ANNOTATIONS, flooded, write_deep
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message, report
from testbed.control_plane import ControlPlane
from testbed.pods import end_pod
from testbed.training_operator import pytorchjob_crd
from testbed.watch import wait_for

SLACK_S = 2.0
"""Besides twice the time without a flood: the machine is shared."""


def stranger(team: Team, name: str, namespace: str, labels: Json) -> None:
    """A pod with a success report that says by its labels alone that it is a job's."""
    team.api.create({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "pytorch", "image": "x"}]},
    })  # fmt: skip
    end_pod(team.api, namespace, name, message=report(Exit.OK, "not yours").line())


def ping(team: Team, name: str = "ping") -> None:
    """A job that is made now is served: whatever was written before was taken note of."""
    team.submit(SMALL, name=name)
    wait_for(team.api, f"{team.runs}/{name}-1", lambda found: found is not None, timeout_s=team.patience_s)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["in another namespace", "without an owner"])
def test_a_strangers_pod_does_not_end_a_job(team: Team, control_plane: ControlPlane, elsewhere: bool) -> None:
    owner = team.submit(SMALL)["metadata"]["uid"]
    team.start(pods=1)
    labels = {names.JOB_LABEL: "sample", names.JOB_UID_LABEL: owner, names.RUN_LABEL: "99",
              "training.kubeflow.org/replica-index": "0"}  # fmt: skip
    namespace = control_plane.cluster.namespace() if elsewhere else team.namespace
    stranger(team, "sample-99-worker-0", namespace, labels)
    team.api.patch(f"{team.pods}/sample-1-worker-0", {"metadata": {"annotations": {"example.org/a": "b"}}})
    ping(team)
    assert condition(team.status(), "Complete") == ("", "")
    team.end("sample-1-worker-0")
    assert team.until_phase("Succeeded")["run"] == 1


def test_a_copy_of_a_pytorchjob_with_its_labels_is_not_deleted(team: Team) -> None:
    team.submit(SMALL)
    wait_for(team.api, f"{team.runs}/sample-1", lambda found: found is not None)
    own = team.api.get(f"{team.runs}/sample-1")
    kept = {k: own["metadata"][k] for k in ("namespace", "labels")}
    team.api.create({k: own[k] for k in ("apiVersion", "kind", "spec")} | {"metadata": kept | {"name": "copy"}})
    ping(team)
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    wait_for(team.api, f"{team.runs}/sample-1", lambda found: found is None)
    assert "deletionTimestamp" not in team.api.get(f"{team.runs}/copy")["metadata"]


def test_an_object_that_names_the_job_as_its_owner_and_is_no_run_is_said_once(team: Team) -> None:
    team.submit(SMALL)
    wait_for(team.api, f"{team.runs}/sample-1", lambda found: found is not None)
    own = team.api.get(f"{team.runs}/sample-1")
    kept = {k: own["metadata"][k] for k in ("namespace", "labels", "ownerReferences")}
    team.api.create({k: own[k] for k in ("apiVersion", "kind", "spec")} | {"metadata": kept | {"name": "copy"}})
    team.until_event("MalformedObject")
    ping(team)
    assert team.events().count("MalformedObject") == 1
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    assert "deletionTimestamp" not in team.api.get(f"{team.runs}/copy")["metadata"]


def test_a_name_that_a_foreign_object_has_is_said_and_the_run_follows_when_it_is_free(team: Team) -> None:
    metadata = {"name": "sample-1", "namespace": team.namespace}
    team.api.create({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata,
                     "spec": {"pytorchReplicaSpecs": {}}})  # fmt: skip
    team.submit(SMALL)
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", "NameTaken"))
    said = message(status, "PodsReady")
    assert said.startswith("PyTorchJob sample-1 has the name of the next run. It is not this job's.")
    assert "Delete it, or rename the job" in said
    team.until_event("NameTaken")
    team.api.delete(f"{team.runs}/sample-1")
    team.until(lambda s: condition(s, "PodsReady")[1] == "Waiting")
    assert team.status()["run"] == 1


def test_a_name_that_a_foreign_pod_has_is_said(team: Team) -> None:
    stranger(team, "sample-1-worker-0", team.namespace, {})
    team.submit(SMALL)
    status = team.until(lambda s: condition(s, "PodsReady") == ("False", "PodNameTaken"))
    assert 'pods "sample-1-worker-0" already exists' in message(status, "PodsReady")
    assert condition(status, "Complete") == ("", "")


@pytest.mark.parametrize("text", ["[" * ANNOTATIONS, "[]", '{"configuration": NaN}'], ids=["deep", "list", "NaN"])
def test_a_claim_may_say_anything_about_results(team: Team, text: str) -> None:
    team.claim("models")
    body = {"spec": {"output": {"uri": "pvc://models/out"}}, "metadata": {"name": "sample"}}
    key = results._annotation(job_settings.read(body))
    path = f"/api/v1/namespaces/{team.namespace}/persistentvolumeclaims/models"
    team.api.patch(path, {"metadata": {"annotations": {key: text}}})
    team.submit()
    wait_for(team.api, f"{team.runs}/sample-1", lambda found: found is not None)
    assert condition(team.status(), "Ready")[1] == "NotFinished"


def test_objects_as_deep_as_the_server_takes_them_stop_no_other_job(tmp_path: Path) -> None:
    with ControlPlane(tmp_path, crds=[pytorchjob_crd(), crd()]) as plane:
        theirs, mine = (Team(plane.cluster.api, plane.cluster.namespace()) for _ in range(2))
        with OperatorProcess(plane.cluster.kubeconfig, tmp_path):
            write_deep(plane.cluster.api, theirs.namespace)
            ping(mine)
        with OperatorProcess(plane.cluster.kubeconfig, tmp_path):
            ping(mine, "after")
        with Console(plane.cluster.kubeconfig, mine.namespace, tmp_path).start("list", "-A") as listing:
            assert (listing.ended(), len(listing.lines)) == (0, 4), listing.lines


def test_a_flood_of_malformed_objects_stops_no_other_job(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with flooded(tmp_path_factory.mktemp("hostile")) as flood:
        before = flood.neighbours.measure(20)
        beside = flood.add(0, 200)
        flood.settle()
        with capsys.disabled():
            print(f"\n{flood}; {beside}, before {before}")
        assert beside.slowest <= 2 * before.slowest + SLACK_S
        flood.check()
