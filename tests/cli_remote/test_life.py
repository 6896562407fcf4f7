"""A job's life through the verbs, against the real API server, the real Training Operator and the real operator."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli_remote.calls import Console
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import EvaluationRecord, ProgressRecord
from finetune_cli import kubernetes_yaml
from operating.team import Team, condition
from testbed.kubelet import Kubelet
from testbed.pods import run_pod
from testbed.watch import wait_for


def step(number: int, total: int = 4) -> str:
    """A record line of rank 0."""
    return ProgressRecord(
        time=0, step=number, total_steps=total, epoch=number / total, loss=2.0 / number, learning_rate=1e-4,
        grad_norm=1.0, tokens_per_second=50.0, eta_seconds=10.0 * (total - number),
    ).line()  # fmt: skip


def _start(team: Team) -> None:
    """The one pod of the job runs."""
    [pod] = team.until_run("sample-1", pods=1)
    run_pod(team.api, team.namespace, pod["metadata"]["name"])


def test_a_submitted_job_is_created_judged_and_started(team: Team, console: Console) -> None:
    done = console("submit", console.job())
    assert (done.code, done.out) == (0, f"finetunejob/sample created in namespace {team.namespace}\n")
    assert f"To watch its progress: finetune watch sample -n {team.namespace}" in done.err
    team.until_run("sample-1", pods=1)
    stored = team.api.get(f"{team.jobs}/sample")
    assert stored["spec"]["job"] == {"model": "org/name", "data": "pvc://rows/train.jsonl"}
    assert "suspend" not in stored["spec"]


def test_a_toml_is_submitted_under_the_name_of_its_file(team: Team, console: Console) -> None:
    toml = Path(__file__).parents[1] / "cli" / "toml" / "multi_gpu_fft_8xh100.toml"
    done = console("submit", str(toml), "--set", "job.data=pvc://rows/train.jsonl", "--output", "pvc://models/out",
                   "-o", "json")  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["metadata"]["name"], condition(told["status"], "Accepted")[0]) == ("multi-gpu-fft-8xh100", "True")
    assert "managedFields" not in told["metadata"]


def test_options_change_the_job_before_it_is_sent(team: Team, console: Console) -> None:
    done = console("submit", console.job(), "--examples", "7", "--set", "hyperparameters.learning_rate=8e-6",
                   "--output", "pvc://models/other")  # fmt: skip
    assert done.code == 0, done.err
    spec = team.api.get(f"{team.jobs}/sample")["spec"]
    assert spec["data"] == {"examples": 7}
    assert spec["hyperparameters"] == {"learning_rate": 8e-6}
    assert spec["output"] == {"uri": "pvc://models/other"}


def test_a_dry_run_asks_the_server_and_creates_nothing(team: Team, console: Console) -> None:
    done = console("submit", console.job(), "--dry-run")
    assert done.code == 0, done.err
    told = kubernetes_yaml.value(done.out)
    assert told["metadata"]["uid"], "the server itself has answered"
    assert team.api.items(team.jobs) == []


def test_jobs_are_listed_by_namespace_label_and_shape(team: Team, console: Console) -> None:
    assert console("list").err == f"No jobs found in namespace {team.namespace}.\n"
    labelled = team.submit({"suspend": True}, name="labelled")
    team.api.patch(f"{team.jobs}/labelled", {"metadata": {"labels": {"team": "a"}}})
    team.submit({"suspend": True}, name="plain")
    team.until_phase("Suspended", "labelled")
    team.until_phase("Suspended", "plain")
    lines = console("list").out.splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "MODEL", "METHOD", "GPUS", "STEP", "LOSS", "ETA", "AGE"]
    assert [line.split()[:5] for line in lines[1:]] == [
        ["labelled", "Suspended", "Qwen/Qwen3-4B", "fft", "8"], ["plain", "Suspended", "Qwen/Qwen3-4B", "fft", "8"],
    ]  # fmt: skip
    [only] = json.loads(console("list", "-l", "team=a", "-o", "json").out)
    assert only["metadata"]["uid"] == labelled["metadata"]["uid"]
    everywhere = console("list", "-A", "--kubeconfig", str(console.kubeconfig), anywhere=True).out.splitlines()
    assert everywhere[0].split()[0] == "NAMESPACE"
    assert [team.namespace, "plain"] in [line.split()[:2] for line in everywhere]


def test_watch_shows_records_as_a_local_run_does_and_ends_with_the_job(
    team: Team, console: Console, kubelet: Kubelet
) -> None:
    console("submit", console.job())
    team.until_run("sample-1", pods=1)
    with console.start("watch", "sample") as watching:
        kubelet.run("sample-1-worker-0")
        watching.until("PodsReady: 1 of 1 pods are running.")
        for number in range(1, 4):
            kubelet.say("sample-1-worker-0", step(number))
            watching.until(f"step {number}/4  loss {2 / number:.4f}  lr 0.0001  50 tokens/s")
        kubelet.say("sample-1-worker-0", EvaluationRecord(time=0, step=3, loss=0.5, rows=2, best=True).line())
        watching.until("eval at step 3: loss 0.5000")
        team.end("sample-1-worker-0")
        assert watching.ended() == 0
    assert any(line.startswith("succeeded in ") for line in watching.lines)
    assert "result:     pvc://models/out/result" in watching.lines
    assert "training loss over steps" in watching.lines


def test_waiting_for_a_submitted_job_ends_as_the_job_ends(team: Team, console: Console) -> None:
    with console.start("submit", console.job(), "--wait") as waiting:
        waiting.until("finetunejob/sample created")
        _start(team)
        team.end("sample-1-worker-0", Exit.DATA_REFUSED, "Line 3 is no JSON.")
        assert waiting.ended() == 1
    assert any("Line 3 is no JSON." in line and line.endswith("[DataRefused]") for line in waiting.lines)
    assert "  remedy: `finetune logs sample` shows the logs of its pods." in waiting.lines


def test_the_final_status_of_a_watched_job_is_data(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1})
    with console.start("watch", "sample", "-o", "json") as watching:
        _start(team)
        team.end("sample-1-worker-0")
        assert watching.ended() == 0
    assert json.loads("\n".join(watching.lines))["phase"] == "Succeeded"


def test_ctrl_c_ends_the_watching_and_not_the_job(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1})
    with console.start("watch", "sample") as watching:
        watching.until("PodsReady")
        watching.interrupt(signal.SIGINT)
        assert watching.ended() == 130
    assert f"The job is still running. To watch it: finetune watch sample -n {team.namespace}" in watching.lines
    assert team.status()["phase"] == "Starting"


def test_a_job_that_is_deleted_ends_the_watching(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1})
    with console.start("watch", "sample") as watching:
        watching.until("PodsReady")
        assert console("delete", "sample").code == 0
        assert watching.ended() == 1
    assert any(line.endswith("The job was deleted. [Deleted]") for line in watching.lines)


def test_a_status_shows_conditions_layout_and_progress(team: Team, console: Console, kubelet: Kubelet) -> None:
    console("submit", console.job())
    team.until_run("sample-1", pods=1)
    kubelet.run("sample-1-worker-0")
    kubelet.say("sample-1-worker-0", step(3))
    team.until(lambda status: (status.get("progress") or {}).get("step") == 3)
    told = console("status", "sample").out
    assert told.startswith("sample: Training\n")
    for line in ("model:    org/name", "method:   lora on single, fp32 (training.mode is lora.)",
                 "layout:   1 node x 1 = 1 rank", "step:     3/4 (75 %)", "loss:     0.6667",
                 "left:     10s"):  # fmt: skip
        assert f"  {line}\n" in told
    assert "Training  yes since " in told
    assert json.loads(console("status", "sample", "-o", "json").out)["progress"]["step"] == 3


def test_suspending_or_resuming_twice_is_no_error(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1})
    team.until_run("sample-1", pods=1)
    assert console("suspend", "sample").err == "finetunejob/sample suspended: its pods save a checkpoint and exit\n"
    team.until_phase("Suspended")
    assert console("suspend", "sample").err == "finetunejob/sample is already suspended\n"
    team.until_gone(team.runs)
    assert console("resume", "sample").err == "finetunejob/sample resumed: it continues from its last checkpoint\n"
    team.until_run("sample-2", pods=1)
    assert console("resume", "sample").err == "finetunejob/sample is not suspended\n"
    assert [console(verb, "sample").code for verb in ("suspend", "resume")] == [0, 0]


def test_cancel_ends_the_job_for_good(team: Team, console: Console) -> None:
    team.submit({"compute.nodes": 1})
    team.until_run("sample-1", pods=1)
    assert console("cancel", "sample").code == 0
    team.until_phase("Cancelled")
    team.until_gone(team.runs)
    again = console("cancel", "sample")
    assert again.code == 2
    assert "The job has ended (Cancelled) and cannot be cancelled. [Ended]" in again.err


def test_delete_waits_until_the_last_pod_is_gone(team: Team, console: Console) -> None:
    team.submit()
    team.until_run("sample-1")
    done = console("delete", "sample", "--wait")
    assert (done.code, done.err) == (0, "finetunejob/sample deleted; its output is kept at pvc://models/out\n")
    assert (team.api.items(team.pods), team.api.items(team.runs), team.api.items(team.jobs)) == ([], [], [])


def test_delete_without_waiting_leaves_the_rest_to_the_cluster(team: Team, console: Console) -> None:
    team.submit()
    team.until_run("sample-1")
    assert console("delete", "sample").code == 0
    wait_for(team.api, f"{team.jobs}/sample", lambda job: job is None)
    team.until_gone(team.pods)


@pytest.mark.parametrize("verb", ["list", "status", "logs", "diagnose"])
def test_the_plugin_of_kubectl_is_the_same_program(verb: str) -> None:
    """kubectl finds plugins by the name kubectl-finetune; its help names itself as it was called."""
    program = Path(sys.executable).with_name("kubectl-finetune")
    done = subprocess.run([program, verb, "-h"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"Usage: kubectl finetune {verb} [OPTIONS]")
