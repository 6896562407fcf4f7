"""The life of a job against the real API server and the real Training Operator; the test plays the nodes."""

from __future__ import annotations

import pytest

from builders import Json
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import DatasetRecord, ProgressRecord
from operating.team import Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet
from testbed.pods import end_pod
from testbed.watch import wait_for, wait_for_all


def environment(pod: Json) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod["spec"]["containers"][0]["env"]}


def job_uids(pods: list[Json]) -> list[str]:
    return [pod["metadata"]["labels"]["finetune.dev/job-uid"] for pod in pods]


def test_an_accepted_job_gets_one_pytorchjob_and_pods_that_find_each_other(team: Team) -> None:
    team.submit()
    pods = {p["metadata"]["name"]: environment(p) for p in team.until_run("sample-1")}
    status = team.until_phase("Starting")
    assert set(pods) == {"sample-1-worker-0", "sample-1-worker-1"}
    assert {(e["PET_NNODES"], e["PET_NPROC_PER_NODE"]) for e in pods.values()} == {("2", "4")}
    assert {(e["PET_MASTER_ADDR"], e["PET_MASTER_PORT"]) for e in pods.values()} == {("sample-1-worker-0", "23456")}
    assert team.run_names() == ["sample-1"]
    assert condition(status, "Accepted")[0] == "True"
    assert (status["run"], status["resolved"]["method"], status["layout"]["nodes"]) == (1, "fft", 2)


def test_a_refused_job_says_why_and_starts_once_it_is_mended(team: Team) -> None:
    team.submit({"compute.gpu_type": "X9000"})
    status = team.until_phase("Failed")
    assert condition(status, "Accepted") == ("False", "UnknownGpuType")
    assert "'X9000' is not an accelerator known here. Choose one of A100," in message(status, "Accepted")
    assert team.run_names() == []
    team.edit({"compute": {"gpu_type": "H100"}})
    team.until_run("sample-1")
    assert condition(team.until_phase("Starting"), "Accepted")[0] == "True"


def test_the_trainers_report_is_success_whatever_workers_do(team: Team) -> None:
    team.submit()
    team.start()
    team.end("sample-1-worker-0", message="All 7 steps are done.")
    status = team.until_phase("Succeeded")
    assert condition(status, "Ready") == condition(status, "Complete") == ("True", "Succeeded")
    assert condition(status, "PodsReady")[0] == "False"
    assert status["result"] == {
        "uri": "pvc://models/out/result",
        "digest": "sha256:1",
        "metrics": {"val.loss": 1.5},
    }
    assert message(status, "Ready") == "All 7 steps are done."


def test_a_first_node_that_ends_well_without_a_report_is_not_believed(team: Team) -> None:
    team.submit({"compute.nodes": 1}, name="mute")
    team.until_run("mute-1", pods=1)
    end_pod(team.api, team.namespace, "mute-1-worker-0", message="")
    status = team.until(lambda s: condition(s, "Training")[1] == "Restarting", "mute")
    assert status["restarts"] == 1


def test_a_failed_worker_restarts_the_gang_and_costs_one_restart(team: Team) -> None:
    team.submit()
    team.start()
    team.end("sample-1-worker-1", Exit.CRASHED, "boom")
    status = team.until(lambda s: s.get("restarts") == 1)
    assert message(status, "Training").startswith("Pod sample-1-worker-1: boom. Read the log")
    team.until_run("sample-2")
    team.until(lambda s: s["run"] == 2)
    assert team.run_names() == ["sample-2"]
    assert team.status()["restarts"] == 1


def test_a_failure_that_would_repeat_itself_ends_the_job_and_its_pods(team: Team) -> None:
    team.submit()
    team.start()
    team.end("sample-1-worker-1", Exit.DATA_REFUSED, "Line 3 is no JSON.")
    status = team.until_phase("Failed")
    assert condition(status, "Failed") == ("True", "DataRefused")
    assert message(status, "Failed").startswith("Pod sample-1-worker-1: Line 3 is no JSON. Correct the lines")
    assert "restarts" not in status
    names = wait_for_all(team.api, team.pods, lambda pods: len(pods) == 1)
    assert names[0]["metadata"]["name"] == "sample-1-worker-1", (
        "the failed pod keeps its log, the others give back GPUs"
    )


def test_suspending_removes_the_pods_and_resuming_starts_the_next_run(team: Team) -> None:
    team.submit()
    team.start()
    team.edit({"suspend": True})
    status = team.until_phase("Suspended")
    assert condition(status, "Suspended") == ("True", "Suspended")
    team.until_gone(team.runs)
    team.until_gone(team.pods)
    team.edit({"suspend": False})
    team.until_run("sample-2")
    status = team.until(lambda s: s.get("run") == 2)
    assert condition(status, "Suspended") == ("False", "Resumed")
    assert "restarts" not in status


def test_a_job_that_is_born_suspended_is_judged_and_waits(team: Team) -> None:
    team.submit({"suspend": True})
    status = team.until_phase("Suspended")
    assert (condition(status, "Accepted")[0], team.run_names()) == ("True", [])
    team.edit({"suspend": False})
    team.until_run("sample-1")


def test_cancelling_ends_the_job_for_good(team: Team) -> None:
    team.submit()
    team.start()
    team.edit({"cancel": True})
    status = team.until_phase("Cancelled")
    assert condition(status, "Failed") == ("True", "Cancelled")
    team.until_gone(team.runs)
    team.until_gone(team.pods)


CLAIM: Json = {
    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}  # fmt: skip


def test_a_job_that_is_made_again_with_its_output_in_place_succeeds_without_a_pod(team: Team) -> None:
    team.api.create(CLAIM | {"metadata": {"name": "models", "namespace": team.namespace}})
    team.submit()
    team.start()
    team.end("sample-1-worker-0")
    first = team.until_phase("Succeeded")
    team.api.delete(f"{team.jobs}/sample")
    team.until_gone(team.runs)
    team.submit()
    again = team.until_phase("Succeeded")
    assert (again["result"], condition(again, "Complete")) == (first["result"], ("True", "AlreadyComplete"))
    assert "run" not in again
    assert team.run_names() == []
    team.api.delete(f"{team.jobs}/sample")
    team.submit({"hyperparameters.learning_rate": 3e-5})
    team.until_run("sample-1")


def test_several_nodes_on_a_claim_of_one_node_are_refused_before_there_are_pods(team: Team) -> None:
    team.claim("models", "ReadWriteOnce")
    team.submit()
    status = team.until(lambda status: condition(status, "Accepted")[0] == "False")
    assert condition(status, "Accepted") == ("False", "OutputNotShared")
    assert "Name a claim with the access mode ReadWriteMany" in message(status, "Accepted")
    assert team.run_names() == []


def test_deleting_the_job_deletes_what_it_owns(team: Team) -> None:
    team.submit()
    team.until_run("sample-1")
    team.api.delete(f"{team.jobs}/sample")
    wait_for(team.api, f"{team.jobs}/sample", lambda job: job is None)
    team.until_gone(team.runs)
    team.until_gone(team.pods)


def test_a_job_that_is_deleted_and_made_again_at_once_gets_pods_of_its_own(team: Team) -> None:
    team.submit()
    old = {p["metadata"]["uid"] for p in team.until_run("sample-1")}
    team.api.delete(f"{team.jobs}/sample")
    team.submit()
    owner = team.api.get(f"{team.jobs}/sample")["metadata"]["uid"]
    # The Training Operator may make pods of the old run once more, until it hears that the run is being deleted.
    pods = wait_for_all(team.api, team.pods, lambda pods: job_uids(pods) == [owner, owner])
    assert not old & {p["metadata"]["uid"] for p in pods}


def test_a_pod_that_was_deleted_restarts_the_gang_for_free(team: Team) -> None:
    team.submit()
    team.start()
    team.api.delete(f"{team.pods}/sample-1-worker-1")
    team.until_run("sample-2")
    assert not team.until(lambda s: s.get("run") == 2).get("restarts")


def test_a_pytorchjob_of_the_same_name_that_is_a_strangers_is_left_alone(team: Team) -> None:
    template: Json = {"spec": {"containers": [{"name": "pytorch", "image": "x"}]}}
    stranger = team.api.create({
        "apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob",
        "metadata": {"name": "sample-1", "namespace": team.namespace},
        "spec": {"pytorchReplicaSpecs": {"Master": {"replicas": 1, "template": template}}},
    })  # fmt: skip
    team.submit()
    status = team.until(lambda s: condition(s, "PodsReady")[1] == "NameTaken")
    assert message(status, "PodsReady").startswith("PyTorchJob sample-1 has the name of the next run.")
    team.api.delete(f"{team.runs}/{stranger['metadata']['name']}")
    team.until(lambda s: condition(s, "PodsReady")[1] == "Waiting")
    assert team.run_names() == ["sample-1"]


def test_children_go_when_their_time_is_over(team: Team) -> None:
    team.submit({"lifecycle.ttlSecondsAfterFinished": 1})
    team.start()
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    team.until_gone(team.runs)
    assert team.status()["phase"] == "Succeeded"


def test_the_deadline_ends_a_quiet_job(team: Team, kubelet: Kubelet) -> None:
    team.submit({"lifecycle.activeDeadlineSeconds": 2})
    for pod in team.until_run("sample-1"):
        kubelet.run(pod["metadata"]["name"])
    team.until_phase("Stopping")
    for pod in team.until_run("sample-1"):  # its node would end it
        team.api.delete(f"{team.pods}/{pod['metadata']['name']}", gracePeriodSeconds="0")
    status = team.until_phase("Failed")
    assert condition(status, "Failed") == ("True", "DeadlineExceeded")
    team.until_gone(team.runs)


SAID = (
    DatasetRecord(split="train", rows=9, used=9, refused=0, truncated=0, tokens=90, target_tokens=30),
    ProgressRecord(time=0, step=7, total_steps=7, epoch=1, loss=1.5, learning_rate=1e-4, grad_norm=1,
                   tokens_per_second=50, eta_seconds=0),
)  # fmt: skip
"""What the first pod prints: all at once, so that no write says nothing but progress."""
CONDITIONS = ("Accepted", "DataReady", "PodsReady", "Training")


HAPPENED = ("accepted", "created", "waits for its pod", "bound", "running", "training", "claim noted", "ended")
"""On a slow machine each is a write of its own; otherwise some of them are seen together."""


def test_an_undisturbed_life_costs_a_write_for_each_thing_that_happens_and_eight_events_at_most(
    control_plane: ControlPlane, team: Team, kubelet: Kubelet
) -> None:
    team.claim("models")
    team.submit({"compute.nodes": 1})  # of two pods, a slow machine may write that the first one runs
    kubelet.say("sample-1-worker-0", *(record.line() for record in SAID))
    team.until_run("sample-1", pods=1)
    kubelet.run("sample-1-worker-0")
    team.until(lambda status: all(condition(status, kind)[0] == "True" for kind in CONDITIONS))
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    wait_for_all(team.api, f"/api/v1/namespaces/{team.namespace}/events", lambda _: "Succeeded" in team.events())
    ours = [
        (entry["verb"], entry["objectRef"]["resource"], entry["objectRef"].get("namespace"))
        for entry in control_plane.requests()
        if entry["verb"] in ("create", "patch", "update", "delete") and entry.get("userAgent") == "finetune-operator"
    ]
    life = [(verb, what) for verb, what, where in ours if where == team.namespace]
    writes = [each for each in life if each[1] != "events"]
    heartbeats = sum(what == "leases" for _, what, _ in ours)
    print(f"writes: {writes}; events: {len(life) - len(writes)}; heartbeats of the whole process: {heartbeats}")
    assert writes[:2] == [("patch", "finetunejobs"), ("create", "pytorchjobs")]
    assert ("patch", "persistentvolumeclaims") in writes
    assert len(writes) <= len(HAPPENED), writes
    assert len(life) - len(writes) <= 8
    assert len(set(team.events())) == len(team.events()), "no event twice"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_what_ended_never_creates_anything_again(team: Team, phase: str) -> None:
    team.submit()
    team.start()
    team.end("sample-1-worker-0", Exit.OK if phase == "Succeeded" else Exit.CONFIG_REFUSED)
    ended = team.until_phase(phase)
    team.api.delete(f"{team.runs}/sample-1")
    team.until_gone(team.runs)
    team.edit({"suspend": True})
    team.edit({"suspend": False})
    status = team.until(lambda s: s["observedGeneration"] == 3)
    assert (team.run_names(), status["phase"], status["completionTime"]) == ([], phase, ended["completionTime"])
