"""`finetune diagnose` against real refusals: of the API server's admission, of the Training Operator, of nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import Json, resource
from cli_remote.calls import Console
from cli_remote.rights import person
from finetune_api.codegen.crd import crd
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.pods import run_pod
from testbed.watch import wait_for, wait_for_all


def until_refused(team: Team) -> None:
    """Until the Training Operator has told that a pod could not be created."""
    path = f"/api/v1/namespaces/{team.namespace}/events"
    wait_for_all(team.api, path, lambda found: any("FailedCreate" in e["reason"] for e in found))


def claim(team: Team, name: str) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "namespace": team.namespace}
    team.api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


REFUSALS: dict[str, tuple[Json, Json, tuple[str, str]]] = {
    "a quota": ({"kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}}, {},
        ("QuotaExceeded", "exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0")),
    "a LimitRange": ({"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}},
        {"pods.memory": "2Gi"}, ("LimitRange", "maximum memory usage per Container is 1Gi")),
    "a priority class": ({}, {"pods.priorityClassName": "urgent"},
        ("NoPriorityClass", "no PriorityClass with name urgent was found")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_pod_that_the_server_refuses_is_found_with_its_remedy(case: str, team: Team, console: Console) -> None:
    manifest, changes, (reason, message) = REFUSALS[case]
    if manifest:
        team.api.create({"apiVersion": "v1", "metadata": {"name": "small", "namespace": team.namespace}} | manifest)
    if manifest.get("kind") == "ResourceQuota":
        path = f"/api/v1/namespaces/{team.namespace}/resourcequotas/small"
        wait_for(team.api, path, lambda found: found and found.get("status", {}).get("hard"))
    team.submit(changes)
    until_refused(team)
    done = console("diagnose", "sample")
    assert done.code == 1
    assert f"[{reason}]\n  remedy: " in done.out
    assert message in done.out


def test_a_claim_that_no_volume_fits_is_found_with_the_controllers_words(team: Team, console: Console) -> None:
    claim(team, "models")
    path = f"/api/v1/namespaces/{team.namespace}/events"
    wait_for_all(team.api, path, lambda found: any(e["reason"] == "FailedBinding" for e in found))
    team.submit({"compute.nodes": 1})
    team.until_run("sample-1", pods=1)
    told = console("diagnose", "sample").out
    message = "The claim models is not bound to a volume: no persistent volumes available for this claim"
    assert f"error: persistentvolumeclaim models: {message} and no storage class is set [ClaimPending]" in told


def test_claims_that_are_missing_are_found_for_programs_too(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1, "job.data": "configmap://rows/train.jsonl"})
    team.until_run("sample-1", pods=1)
    told = json.loads(console("diagnose", "sample", "-o", "json").out)
    assert (told["name"], told["phase"], told["hidden"]) == ("sample", "Starting", [])
    assert [(f["path"], f["reason"]) for f in told["findings"]] == [
        ("persistentvolumeclaim models", "NotFound"), ("configmap rows", "NotFound"),
        ("pod sample-1-worker-0", "NotScheduled"),
    ]  # fmt: skip
    assert all(set(f) == {"path", "reason", "message", "remedy"} for f in told["findings"])


def test_a_job_that_runs_has_no_findings(team: Team, console: Console) -> None:
    claim(team, "rows")
    team.submit()
    for each in team.until_run("sample-1"):
        run_pod(team.api, team.namespace, each["metadata"]["name"])
    team.until(lambda status: any(c["reason"] == "Running" for c in status["conditions"]))
    done = console("diagnose", "sample")
    assert (done.code, done.err) == (0, ""), done.out
    assert done.out == "finetunejob/sample: no problems found; the job is Starting.\n"


def test_objects_that_may_not_be_read_are_named(team: Team, control_plane: ControlPlane, tmp_path: Path) -> None:
    team.submit({"suspend": True})
    team.until_phase("Suspended")
    rules = [{"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["get", "list"]}]
    console = Console(person(control_plane, team.namespace, rules), team.namespace, tmp_path)
    done = console("diagnose", "sample")
    assert done.code == 1
    assert "The job is suspended. [Suspended]" in done.out
    for hidden in ("leases of all namespaces", "pods", "pytorchjobs", "persistentvolumeclaims"):
        assert hidden in done.err


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster with our resource, and neither our operator nor the Training Operator."""
    with ControlPlane(tmp_path_factory.mktemp("unserved"), crds=[crd()]) as plane:
        yield plane


def test_a_cluster_without_an_operator_is_a_finding(unserved: ControlPlane, tmp_path: Path) -> None:
    body = resource({"job.data": "/data/rows.jsonl", "output": {"ephemeral": True}})
    body["metadata"]["namespace"] = "default"
    unserved.cluster.api.create(body)
    console = Console(unserved.cluster.kubeconfig, "default", tmp_path)
    done = console("diagnose", "sample")
    assert done.code == 1
    message = "No operator has reconciled the job yet. No operator has ever run in this cluster."
    assert done.out.splitlines()[0] == f"error: operator: {message} [NoOperator]"
    assert "error: cluster: The PyTorchJob resource is not installed in this cluster. [BackendMissing]" in done.out


def test_a_job_that_no_operator_reconciles_is_submitted_with_a_message(
    unserved: ControlPlane, tmp_path: Path
) -> None:
    console = Console(unserved.cluster.kubeconfig, "default", tmp_path)
    done = console("submit", console.job(("name: sample", "name: lonely")))
    assert (done.code, done.out) == (0, "finetunejob/lonely created in namespace default\n")
    assert "No operator has reconciled the job yet. `finetune diagnose lonely` shows the cause." in done.err
