"""A result on its way here: whole or not at all, and only what is a result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from builders import Json
from cli_remote.calls import Console
from finetune_api.runtime.protocol import MARKER
from finetune_cli.remote.transfer import ATTEMPTS
from operating.team import Team
from testbed.kubelet import Kubelet
from testbed.watch import wait_for_all

TRANSFER = "app.kubernetes.io/component=transfer"


def until_transfer_pod(team: Team) -> Json:
    [pod] = wait_for_all(team.api, team.pods, lambda found: len(found) == 1, labelSelector=TRANSFER)
    return pod


def succeed(team: Team) -> None:
    """A job that has ended well; its output is pvc://models/out."""
    team.submit()
    team.start()
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")


def result(kubelet: Kubelet, *, complete: bool = True) -> dict[str, bytes]:
    """Files of a result on the claim: small, large, empty, in a folder of their own."""
    folder = kubelet.claims / "models" / "out" / "result"
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": os.urandom(9 << 20), "empty": b"",
             "tokenizer/tokenizer.json": b"[]"}  # fmt: skip
    files |= {MARKER: b"done"} if complete else {}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def here(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def gone(team: Team) -> bool:
    """Whether every transfer pod is being deleted."""
    pods = team.api.items(team.pods, labelSelector=TRANSFER)
    return all("deletionTimestamp" in pod["metadata"] for pod in pods)


def test_a_result_comes_here_byte_by_byte(team: Team, console: Console, kubelet: Kubelet) -> None:
    succeed(team)
    files = result(kubelet)
    with console.start("fetch", "sample", "--to", "my/adapter") as fetching:
        pod = until_transfer_pod(team)
        [volume] = [v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
        assert volume == {"claimName": "models", "readOnly": True}
        kubelet.run(pod["metadata"]["name"])
        assert fetching.ended() == 0, fetching.lines
    assert here(console.folder / "my" / "adapter") == files
    assert fetching.lines[-1] == "my/adapter"
    assert "downloading /mnt/claims/models/out/result to my/adapter: 9.0 MiB" in fetching.lines
    assert [p.name for p in (console.folder / "my").iterdir()] == ["adapter"]
    assert gone(team)


def test_a_result_without_its_marker_is_not_taken(team: Team, console: Console, kubelet: Kubelet) -> None:
    succeed(team)
    result(kubelet, complete=False)
    with console.start("fetch", "sample") as fetching:
        kubelet.run(until_transfer_pod(team)["metadata"]["name"])
        assert fetching.ended() == 1
    assert "error: transfer: The result is missing or incomplete. [TransferFailed]" in fetching.lines
    assert not (console.folder / "sample-result").exists()
    assert gone(team)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fetch_leaves_neither_folder_nor_pod(
    number: signal.Signals, team: Team, console: Console
) -> None:
    succeed(team)
    with console.start("fetch", "sample") as fetching:
        until_transfer_pod(team)
        fetching.interrupt(number)
        assert fetching.ended() == 130
    wait_for_all(team.api, team.pods, lambda found: not found, labelSelector=TRANSFER)
    assert not [path for path in console.folder.iterdir() if "sample" in path.name]


def test_a_download_whose_connection_breaks_is_resumed(team: Team, console: Console, kubelet: Kubelet) -> None:
    succeed(team)
    files = result(kubelet)
    kubelet.break_output_after = 4 << 20
    with console.start("fetch", "sample") as fetching:
        kubelet.run(until_transfer_pod(team)["metadata"]["name"])
        assert fetching.ended() == 0, fetching.lines
    assert here(console.folder / "sample-result") == files
    starts = [int(command[-1]) for command in kubelet.commands]
    assert starts[0] == 0
    assert starts == sorted(set(starts)), "each went on where the one before it had broken"
    assert len(starts) > 2, "the connection was broken"


def test_a_connection_that_brings_nothing_leaves_no_half_result(
    team: Team, console: Console, kubelet: Kubelet
) -> None:
    succeed(team)
    result(kubelet)
    kubelet.break_output_after = 0
    with console.start("fetch", "sample") as fetching:
        kubelet.run(until_transfer_pod(team)["metadata"]["name"])
        assert fetching.ended() == 1
    assert len(kubelet.commands) == ATTEMPTS
    assert any("the connection to the pod" in line and line.endswith("[Unreachable]") for line in fetching.lines)
    assert not [path for path in console.folder.iterdir() if "sample" in path.name]
    assert gone(team)


def test_a_result_that_changes_between_two_connections_is_not_taken(
    team: Team, console: Console, kubelet: Kubelet
) -> None:
    succeed(team)
    result(kubelet)
    kubelet.break_output_after = 4 << 20
    with console.start("fetch", "sample") as fetching:
        kubelet.run(until_transfer_pod(team)["metadata"]["name"])
        fetching.until("downloading ")
        (kubelet.claims / "models" / "out" / "result" / "empty").write_bytes(b"no longer")
        assert fetching.ended() == 1
    assert "error: result: The result changed during the transfer. [TransferFailed]" in fetching.lines
    assert not (console.folder / "sample-result").exists()


def test_a_missing_claim_keeps_the_pod_pending_and_is_reported(team: Team, console: Console) -> None:
    succeed(team)
    with console.start("fetch", "sample") as fetching:
        pod = until_transfer_pod(team)["metadata"]["name"]
        unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                       "message": 'persistentvolumeclaim "models" not found'}  # fmt: skip
        team.api.patch(f"{team.pods}/{pod}/status", {"status": {"conditions": [unscheduled]}})
        line = fetching.until('persistentvolumeclaim "models" not found')
    assert line.endswith("Create the PersistentVolumeClaim; the pod then starts automatically.")
