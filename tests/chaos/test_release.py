"""Pods that go on after the job's success give back their GPUs: the Training Operator would wait for them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from chaos.bed import Bed
from operating.process import OperatorProcess
from operating.team import Team


def release(bed: Bed, folder: Path) -> float:
    """Seconds from the success to the end of a worker that does not end by itself."""
    team = Team(bed.plane.cluster.api, bed.plane.cluster.namespace())
    settings = {"WATCH_NAMESPACE": team.namespace, "OWN_NAMESPACE": team.namespace}
    with OperatorProcess(bed.plane.cluster.kubeconfig, folder, settings):
        team.submit()
        team.start("sample-1")
        team.end("sample-1-worker-0")
        team.until_phase("Succeeded")
        begun = time.monotonic()
        team.until_gone(team.pods)
        assert team.status()["phase"] == "Succeeded"
        return time.monotonic() - begun


@pytest.mark.trial(work=release, idle=True)
@pytest.mark.timeout(900)
def test_workers_that_outlive_the_success_are_released(outcome: float) -> None:
    assert 30 < outcome <= 90, "some time to end by themselves, and no more"
