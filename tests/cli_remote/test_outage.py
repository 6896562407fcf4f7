"""An API server that goes away for a while: what goes on looking, goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import Json, resource
from cli_remote.calls import Console
from finetune_api.codegen.crd import crd
from testbed.control_plane import ControlPlane

JOB = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs/sample"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane of our own, to be hurt; the test plays the operator."""
    folder = tmp_path / "plane"
    folder.mkdir()
    with ControlPlane(folder, crds=[crd()]) as found:
        yield found


def tell(plane: ControlPlane, status: Json) -> None:
    plane.cluster.api.patch(f"{JOB}/status", {"status": {"observedGeneration": 1, **status}})


def progress(step: int) -> Json:
    return {"phase": "Training", "progress": {"step": step, "totalSteps": 4, "percent": 25 * step, "loss": 1.0}}


def test_a_watch_outlives_the_api_server(plane: ControlPlane, tmp_path: Path) -> None:
    body = resource()
    body["metadata"]["namespace"] = "default"
    plane.cluster.api.create(body)
    console = Console(plane.cluster.kubeconfig, "default", tmp_path)
    tell(plane, progress(1))
    with console.start("watch", "sample") as watching:
        watching.until("step 1/4")
        plane.apiserver.stop()
        watching.until("connection lost: ")
        plane.apiserver.start()
        plane.apiserver.wait_ready()
        tell(plane, progress(2))
        watching.until("step 2/4")
        done = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "All 4 steps are done.",
                "lastTransitionTime": "2026-11-21T12:00:00Z"}  # fmt: skip
        tell(plane, {"phase": "Succeeded", "conditions": [done], "completionTime": "2026-11-21T12:00:00Z"})
        assert watching.ended() == 0
    assert sum("connection lost: " in line for line in watching.lines) == 1, "said once"


def test_a_request_is_tried_again_while_the_server_comes_up(plane: ControlPlane, tmp_path: Path) -> None:
    console = Console(plane.cluster.kubeconfig, "default", tmp_path)
    plane.apiserver.stop()
    done = console("list")
    assert done.code == 1
    assert "does not answer: Connection refused. [Unreachable]" in done.err
    plane.apiserver.start()
    plane.apiserver.wait_ready()
    assert console("list").code == 0
