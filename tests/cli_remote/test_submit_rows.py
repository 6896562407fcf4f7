"""Rows of this machine on their way to a job: nothing half done is left, whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from builders import Json
from cli_remote.calls import Console
from cli_remote.rights import editor, person
from finetune_cli.remote import pod_programs
from finetune_cli.remote.dataset_upload import AWAITING, CONFIG_MAP_BYTES
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet
from testbed.watch import wait_for, wait_for_all


def config_maps(team: Team) -> list[Json]:
    found = team.api.items(f"/api/v1/namespaces/{team.namespace}/configmaps")
    return [each for each in found if each["metadata"]["name"] != "kube-root-ca.crt"]


def transfer_pods(team: Team) -> list[str]:
    """Transfer pods that are not being deleted."""
    selector = "app.kubernetes.io/component=transfer"
    pods = team.api.items(team.pods, labelSelector=selector)
    return [p["metadata"]["name"] for p in pods if "deletionTimestamp" not in p["metadata"]]


def until_transfer_pod(team: Team) -> Json:
    selector = "app.kubernetes.io/component=transfer"
    [pod] = wait_for_all(team.api, team.pods, lambda found: len(found) == 1, labelSelector=selector)
    return pod


def test_few_rows_are_stored_in_a_config_map_that_is_deleted_with_the_job(team: Team, console: Console) -> None:
    done = console("submit", console.job(), "--dataset", console.rows(3, name="my rows.jsonl"))
    assert done.code == 0, done.err
    text = (console.folder / "my rows.jsonl").read_bytes()
    name = f"sample-dataset-{hashlib.sha256(text).hexdigest()[:8]}"
    job = team.api.get(f"{team.jobs}/sample")
    assert job["spec"]["job"]["data"] == f"configmap://{name}/my-rows.jsonl"
    assert ("suspend" in job["spec"], AWAITING in job["metadata"].get("annotations", {})) == (False, False)
    [found] = config_maps(team)
    assert (found["metadata"]["name"], found["immutable"]) == (name, True)
    assert found["data"] == {"my-rows.jsonl": text.decode()}
    assert [o["uid"] for o in found["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]
    [pod] = team.until_run("sample-1", pods=1)
    assert name in [v["configMap"]["name"] for v in pod["spec"]["volumes"] if "configMap" in v]
    assert console("delete", "sample", "--wait").code == 0
    wait_for(team.api, f"/api/v1/namespaces/{team.namespace}/configmaps/{name}", lambda gone: gone is None)


def test_a_job_that_its_file_suspends_stays_suspended_with_its_rows(team: Team, console: Console) -> None:
    file = console.job(("  training:", "  suspend: true\n  training:"))
    assert console("submit", file, "--dataset", console.rows()).code == 0
    assert team.api.get(f"{team.jobs}/sample")["spec"]["suspend"] is True
    assert len(config_maps(team)) == 1
    assert team.run_names() == []


def test_the_rows_of_a_job_just_deleted_do_not_stand_in_the_way(team: Team, console: Console) -> None:
    file, rows = console.job(), console.rows()
    for _ in range(3):
        done = console("submit", file, "--dataset", rows)
        assert done.code == 0, done.err
        job = team.api.get(f"{team.jobs}/sample")
        [found] = [c for c in config_maps(team) if "deletionTimestamp" not in c["metadata"]]
        assert found["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        assert console("delete", "sample").code == 0


def test_a_config_map_of_a_stranger_is_left_alone_and_no_job_is_left(team: Team, console: Console) -> None:
    file, rows = console.job(), console.rows()
    name = f"sample-dataset-{hashlib.sha256((console.folder / rows).read_bytes()).hexdigest()[:8]}"
    metadata = {"name": name, "namespace": team.namespace}
    team.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}})
    done = console("submit", file, "--dataset", rows)
    assert done.code == 2
    assert f"The ConfigMap {name} already exists and does not belong to this job. [AlreadyExists]" in done.err
    team.until_gone(team.jobs)
    assert config_maps(team)[0]["data"] == {"a": "b"}


def test_a_call_that_was_killed_before_the_upload_is_resumed(team: Team, console: Console) -> None:
    """The state that SIGKILL leaves between the first write and the second."""
    file, rows = console.job(), console.rows()
    digest = hashlib.sha256((console.folder / rows).read_bytes()).hexdigest()
    asked = console("submit", file, "--dataset", rows, "--dry-run", "-o", "json")
    body = json.loads(asked.out)
    body["metadata"] = {"name": "sample", "namespace": team.namespace, "annotations": {AWAITING: digest}}
    body["spec"]["suspend"] = True
    uid = team.api.create(body)["metadata"]["uid"]
    team.until_phase("Suspended")
    told = console("diagnose", "sample")
    assert told.code == 1
    assert "The job is waiting for its dataset: `finetune submit` was interrupted. [DatasetMissing]" in told.out
    assert console("submit", file, "--dataset", console.rows(4, "other.jsonl")).code == 2
    done = console("submit", file, "--dataset", rows)
    assert done.code == 0, done.err
    assert "finetunejob/sample exists from an interrupted submit; resuming its upload" in done.err
    job = team.api.get(f"{team.jobs}/sample")
    assert (job["metadata"]["uid"], "suspend" in job["spec"]) == (uid, False)
    team.until_run("sample-1", pods=1)


def test_rights_that_end_at_config_maps_leave_no_job(team: Team, control_plane: ControlPlane, tmp_path: Path) -> None:
    rules = [{"apiGroups": ["finetune.dev"], "resources": ["finetunejobs"], "verbs": ["*"]}]
    console = Console(person(control_plane, team.namespace, rules), team.namespace, tmp_path)
    done = console("submit", console.job(), "--dataset", console.rows())
    assert done.code == 1
    assert "may not create configmaps in namespace" in done.err
    team.until_gone(team.jobs)


def test_many_rows_are_uploaded_to_the_jobs_claim_before_it_starts(
    team: Team, control_plane: ControlPlane, tmp_path: Path, kubelet: Kubelet
) -> None:
    console = Console(editor(control_plane, team.namespace), team.namespace, tmp_path)
    rows = console.rows(width=CONFIG_MAP_BYTES)
    text = (console.folder / rows).read_bytes()
    assert len(text) > CONFIG_MAP_BYTES
    with console.start("submit", console.job(), "--dataset", rows) as sending:
        pod = until_transfer_pod(team)
        assert team.api.get(f"{team.jobs}/sample")["spec"]["suspend"] is True
        kubelet.run(pod["metadata"]["name"])
        assert sending.ended() == 0, sending.lines
    path = f"finetune-datasets/{hashlib.sha256(text).hexdigest()[:16]}/rows.jsonl"
    assert (kubelet.claims / "models" / path).read_bytes() == text
    job = team.api.get(f"{team.jobs}/sample")
    assert (job["spec"]["job"]["data"], "suspend" in job["spec"]) == (f"pvc://models/{path}", False)
    assert transfer_pods(team) == []
    assert f"uploading rows.jsonl to pvc://models/{path}: {len(text) / 2**20:.1f} MiB" in sending.lines
    team.until_run("sample-1", pods=1)


def test_the_transfer_pod_is_restricted_and_goes_with_the_job(team: Team, console: Console) -> None:
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    team.api.patch(f"/api/v1/namespaces/{team.namespace}", level)
    rows = console.rows(width=CONFIG_MAP_BYTES)
    arguments = (
        "--dataset",
        rows,
        "--set",
        "pods.image=example.org/trainer:1",
        "--set",
        "pods.imagePullSecrets=[key]",
    )
    with console.start("submit", console.job(), *arguments) as sending:
        pod = until_transfer_pod(team)
        uid = team.api.get(f"{team.jobs}/sample")["metadata"]["uid"]
        [container] = pod["spec"]["containers"]
        assert (container["image"], pod["spec"]["imagePullSecrets"]) == ("example.org/trainer:1", [{"name": "key"}])
        assert container["command"] == ["python", "-c", pod_programs.source("idle"), "120"]
        assert [o["uid"] for o in pod["metadata"]["ownerReferences"]] == [uid]
        assert "finetune.dev/job-uid" not in pod["metadata"]["labels"], "the operator would count it"
        sending.until("waiting for the transfer pod: The scheduler has not processed the pod yet.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_upload_that_is_interrupted_leaves_neither_pod_nor_job(
    number: signal.Signals, team: Team, console: Console
) -> None:
    with console.start("submit", console.job(), "--dataset", console.rows(width=CONFIG_MAP_BYTES)) as sending:
        until_transfer_pod(team)
        sending.interrupt(number)
        assert sending.ended() == 130
    assert sending.lines[-1] == "Interrupted."
    team.until_gone(team.pods)
    team.until_gone(team.jobs)


def test_a_quota_without_room_for_the_transfer_pod_is_reported_and_leaves_no_job(
    team: Team, console: Console
) -> None:
    quota: Json = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}}
    team.api.create(quota | {"metadata": {"name": "none", "namespace": team.namespace}})
    path = f"/api/v1/namespaces/{team.namespace}/resourcequotas/none"
    wait_for(team.api, path, lambda found: found and found.get("status", {}).get("hard"))
    done = console("submit", console.job(), "--dataset", console.rows(width=CONFIG_MAP_BYTES))
    assert done.code == 1
    assert "exceeded quota: none, requested: pods=1" in done.err
    assert "[QuotaExceeded]\n  remedy: Wait until other pods of the namespace end" in done.err
    team.until_gone(team.jobs)


def test_an_upload_whose_connection_breaks_goes_on_where_it_was(
    team: Team, console: Console, kubelet: Kubelet
) -> None:
    rows = console.rows(400, width=1 << 17)
    text = (console.folder / rows).read_bytes()
    breaks = [12 << 20, 24 << 20]
    total = 0

    def breaking(sent: int) -> bool:
        nonlocal total
        total = sent
        return bool(breaks) and sent > breaks[0] and bool(breaks.pop(0))

    kubelet.break_after = breaking
    with console.start("submit", console.job(), "--dataset", rows) as sending:
        kubelet.run(until_transfer_pod(team)["metadata"]["name"])
        assert sending.ended() == 0, sending.lines
    [found] = (kubelet.claims / "models" / "finetune-datasets").rglob("rows.jsonl")
    assert found.read_bytes() == text
    assert len(kubelet.commands) == 3 - len(breaks)
    assert breaks != [12 << 20, 24 << 20], "the connection was broken"
    assert total < len(text), "the last connection did not send everything again"
    assert list(found.parent.glob(".*")) == []


def test_rows_that_are_on_the_claim_already_are_not_sent_again(
    team: Team, console: Console, kubelet: Kubelet
) -> None:
    rows = console.rows(width=CONFIG_MAP_BYTES)
    sent = 0

    def count(bytes_: int) -> bool:
        nonlocal sent
        sent = bytes_
        return False

    kubelet.break_after = count
    for expected in (True, False):
        sent = 0
        with console.start("submit", console.job(), "--dataset", rows) as sending:
            kubelet.run(until_transfer_pod(team)["metadata"]["name"])
            assert sending.ended() == 0, sending.lines
        assert bool(sent) is expected
        for name in _all_carriers(team):
            team.api.delete(f"{team.pods}/{name}", gracePeriodSeconds="0")
        assert console("delete", "sample", "--wait").code == 0


def _all_carriers(team: Team) -> list[str]:
    pods = team.api.items(team.pods, labelSelector="app.kubernetes.io/component=transfer")
    return [pod["metadata"]["name"] for pod in pods]
