"""A job that an earlier version started (previous-version/README.md) goes on and ends as if nothing had changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from guards import product

Json = dict[str, Any]

RECORDED = Path(__file__).with_name("previous-version")
OUTPUT = RECORDED / "output"
SOON, LATE = "2026-11-26T22:34:52+00:00", "2026-11-27T22:34:52+00:00"
SETTINGS: dict[str, Json] = {
    "the settings it was started with": {},
    "those of a newer operator": {
        "trainer_image": "trainer:newer",
        "shared_memory": "1Gi",
        "grace_period_seconds": 60,
    },
}
RUN_CONFIG = "finetune.dev/run-config"


def load(name: str) -> Any:
    return yaml.safe_load((RECORDED / f"{name}.yaml").read_text())


def observed(phase: str, **more: Any) -> Json:
    """The recorded objects, running or finished."""
    return {"job": load(f"{phase}-job"), "runs": load(f"{phase}-pytorchjobs"), "pods": load(f"{phase}-pods")} | more


def conditions(status: Json) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def pinned(status: Json) -> Json:
    """What was resolved at acceptance, without sentences."""
    kept = {"resolved": dict(status["resolved"]), "layout": dict(status["layout"])}
    kept["resolved"].pop("methodReason")
    kept["layout"].pop("reasons")
    return kept


def template(manifest: Json) -> Json:
    found: Json = manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    return found


def keeps_what_was_pinned(action: Json, status: Json) -> None:
    """The action creates run 2 with the image, replicas and run configuration of run 1."""
    pod, manifest = template(action["create"]), action["create"]
    assert (manifest["metadata"]["name"], action["previous"]) == ("recorded-2", "recorded-1")
    assert manifest["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] == status["layout"]["nodes"]
    assert pod["spec"]["containers"][0]["image"] == status["resolved"]["image"]
    [first, *_] = load("running-pytorchjobs")
    assert pod["metadata"]["annotations"][RUN_CONFIG] == template(first)["metadata"]["annotations"][RUN_CONFIG]
    assert pod["metadata"]["annotations"][RUN_CONFIG] == status["resolved"]["runConfig"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_running_job_is_left_alone_and_stays_as_it_was_resolved(settings: str) -> None:
    seen = observed("running")
    answer = product.plan(copy.deepcopy(seen), SETTINGS[settings], SOON)
    before, after = seen["job"]["status"], answer["status"]
    assert (answer["actions"], answer["verdict"]["problems"], answer["events"]) == ([], [], [])
    assert (after["run"], after["phase"], after["startTime"]) == (1, "Training", before["startTime"])
    assert pinned(after) == pinned(before)
    assert conditions(after) == conditions(before)
    assert (after["progress"], after["dataset"]) == (before["progress"], before["dataset"])


def test_its_log_is_read() -> None:
    log = (OUTPUT / "records.jsonl").read_text().splitlines()[:-1]
    answer = product.plan(observed("running", log=log), {}, SOON)
    progress = answer["status"]["progress"]
    assert (progress["step"], progress["totalSteps"], progress["checkpointStep"]) == (8, 8, 8)
    assert (progress["loss"], progress["evalLoss"]) == (6.043066, 5.733374)
    assert answer["status"]["dataset"]["rows"] == 24


def test_its_report_ends_it_as_the_earlier_version_ended_it() -> None:
    seen = observed("finished") | {"job": load("running-job")}
    answer = product.plan(seen, {}, SOON)
    then = load("finished-job")["status"]
    assert (answer["actions"], answer["status"]["phase"]) == ([], "Succeeded")
    assert answer["status"]["result"] == then["result"]
    assert conditions(answer["status"]) == conditions(then)
    [(annotation, text)] = load("claim")["metadata"]["annotations"].items()
    assert (answer["remember"]["claim"], answer["remember"]["annotation"]) == ("models", annotation)
    assert without_time(answer["remember"]["text"]) == without_time(text)


def without_time(text: str) -> Json:
    return {key: value for key, value in json.loads(text).items() if key != "completionTime"}


def with_contract(**changes: Any) -> Json:
    """The recorded job, deleted pods and all, with the contract that an operator of today pins, and changes of it."""
    job = load("running-job")
    started = product.plan({"job": job | {"status": {}}}, {}, SOON)["status"]
    job["status"]["resolved"]["contract"] = json.dumps(json.loads(started["resolved"]["contract"]) | changes)
    return product.plan({"job": job}, {}, LATE)


def test_a_later_run_gets_the_command_environment_and_paths_that_were_pinned() -> None:
    plain = product.plan({"job": load("running-job")}, {}, LATE)
    assert with_contract()["actions"] == plain["actions"], "jobs of versions that pinned nothing had these values"
    env = {"FINETUNE_RUN_CONFIG": "/old/run.json", "FINETUNE_REPORT": "/old/report"}
    [action] = with_contract(command=["old-trainer"], env=env, paths={"run-config": "/old"})["actions"]
    [container] = template(action["create"])["spec"]["containers"]
    assert container["command"] == ["old-trainer"]
    assert env.items() <= {e["name"]: e.get("value") for e in container["env"]}.items()
    assert (container["terminationMessagePath"], container["volumeMounts"][0]["mountPath"]) == ("/old/report", "/old")


def test_after_a_downgrade_a_job_waits_instead_of_starting_half_of_what_was_chosen() -> None:
    answer = with_contract(version=99)
    assert (answer["actions"], answer["status"]["phase"]) == ([], "Queued")
    assert conditions(answer["status"])["PodsReady"] == ("False", "NewerContract")
    assert json.loads(answer["status"]["resolved"]["contract"])["version"] == 99


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_failed_pod_restarts_it_as_it_was_resolved(settings: str) -> None:
    seen = observed("running")
    ended = {"exitCode": 1, "message": ""}
    seen["pods"][1]["status"] = {
        "phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": {"terminated": ended}}],
    }  # fmt: skip
    failed = product.plan(copy.deepcopy(seen), SETTINGS[settings], SOON)
    assert failed["actions"] == [{"delete": "recorded-1", "uid": seen["runs"][0]["metadata"]["uid"]}]
    assert failed["status"]["restarts"] == 1
    again = product.plan({"job": seen["job"] | {"status": failed["status"]}}, SETTINGS[settings], LATE)
    [action] = again["actions"]
    keeps_what_was_pinned(action, seen["job"]["status"])


def test_it_can_be_suspended_and_resumed() -> None:
    seen = observed("running")
    seen["job"]["spec"]["suspend"] = True
    stopped = product.plan(copy.deepcopy(seen), {}, SOON)
    assert [action["delete"] for action in stopped["actions"]] == ["recorded-1"]
    assert stopped["status"]["phase"] == "Stopping"
    stopped = product.plan({"job": seen["job"] | {"status": stopped["status"]}}, {}, SOON)
    assert (stopped["actions"], stopped["status"]["phase"]) == ([], "Suspended")
    seen["job"]["spec"]["suspend"] = False
    resumed = product.plan({"job": seen["job"] | {"status": stopped["status"]}}, {}, SOON)
    [action] = resumed["actions"]
    keeps_what_was_pinned(action, seen["job"]["status"])


@pytest.mark.parametrize("network", ["auto", "tcp"])
@pytest.mark.parametrize("settings", [{}, {"default_networks": {"*": "coreweave-ib"}}], ids=["bare", "a default"])
def test_the_next_run_of_a_job_on_gpus_has_the_pods_of_the_first(network: str, settings: Json) -> None:
    """Also where GPUs have found a fast network of the nodes by themselves."""
    job, first = load(f"gpus-{network}-job"), load(f"gpus-{network}-pytorchjob")
    job["status"] |= {"retry": {"run": 1}, "conditions": job["status"]["conditions"][:2]}
    [action] = product.plan({"job": job}, settings, LATE)["actions"]
    without_more_nodes(action["create"])
    assert json.dumps(action["create"]).replace("recorded-2", "recorded-1") == json.dumps(first).replace(
        '"finetune.dev/run": "1"', '"finetune.dev/run": "2"'
    )


def without_more_nodes(manifest: Json) -> None:
    """As it was when GPUs were found by one label only, and their taint was not tolerated."""
    spec = template(manifest)["spec"]
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert all("gpu.product" in json.dumps(term) for term in required["nodeSelectorTerms"])
    del required["nodeSelectorTerms"][1:]
    assert spec.pop("tolerations") == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_finished_job_only_loses_its_children_in_time() -> None:
    early = product.plan(observed("finished"), {}, SOON)
    late = product.plan(observed("finished"), {}, LATE)
    gone = product.plan({"job": load("finished-job")}, {}, LATE)
    assert (early["actions"], gone["actions"]) == ([], [])
    assert [action["delete"] for action in late["actions"]] == ["recorded-1"]
    assert late["status"] == load("finished-job")["status"]


def test_applied_again_it_is_complete_because_its_claim_says_so() -> None:
    job = load("running-job") | {"status": {}}
    annotations = load("claim")["metadata"]["annotations"]
    answer = product.plan({"job": job, "claim": annotations}, {}, LATE)
    assert answer["actions"] == []
    assert conditions(answer["status"])["Complete"] == ("True", "AlreadyComplete")
    assert answer["status"]["result"] == load("finished-job")["status"]["result"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The run configuration as the recorded pods see it."""
    path = tmp_path / "run.json"
    path.write_text(load("running-pods")[0]["metadata"]["annotations"][RUN_CONFIG])
    return path


def test_the_trainer_reads_the_run_configuration_and_nothing_of_it_is_lost(config: Path) -> None:
    assert contains(product.read_run_config(config), json.loads(config.read_text()))


def test_the_trainer_knows_the_output_folder_as_its_own(config: Path) -> None:
    written = json.loads((OUTPUT / "run.json").read_text())
    identity = written["identity"]
    content = {name: identity[f"content.{name}"] for name in ("model", "data")}
    assert product.run_identity(config, content, identity["rows_per_step"]) == written


def test_every_record_and_the_report_are_read_and_nothing_of_them_is_lost() -> None:
    lines = (OUTPUT / "records.jsonl").read_text().splitlines()
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in load("finished-pods")]
    report = json.dumps(json.loads((OUTPUT / "report.json").read_text()), separators=(",", ":"))
    for line in (*lines, report, *(state["message"] for state in ended)):
        assert contains(product.read_record(line), json.loads(line))
    assert {json.loads(line)["record"] for line in lines} == {
        "dataset", "progress", "evaluation", "checkpoint", "report",
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["checkpoints/step-00000006", "result"])
def test_checkpoint_and_result_count_while_they_are_whole(folder: str, tmp_path: Path) -> None:
    text = (OUTPUT / folder / "COMPLETE").read_text()
    (tmp_path / "COMPLETE").write_text(text)
    for name, stamp in json.loads(text)["files"].items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(stamp["size"])
    assert contains(product.read_marker(tmp_path), json.loads(text))
    next(path for path in tmp_path.iterdir() if path.name != "COMPLETE").unlink()
    assert product.read_marker(tmp_path) is None


def contains(found: Any, recorded: Any) -> bool:
    """Whether everything that was recorded is there; a newer version may know more."""
    if isinstance(recorded, dict):
        return isinstance(found, dict) and all(k in found and contains(found[k], v) for k, v in recorded.items())
    return bool(found == recorded)
