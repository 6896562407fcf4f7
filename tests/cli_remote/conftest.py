"""One control plane, one Training Operator and one operator for all tests of verbs on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_remote.calls import Console
from operating.process import OperatorProcess
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, kubelet, namespace

__all__ = ["cluster", "control_plane", "kubelet", "namespace"]


@pytest.fixture(scope="session")
def operator(control_plane: ControlPlane) -> Iterator[OperatorProcess]:
    """It may read nodes."""
    settings = {"READ_NODES": "true"}
    with OperatorProcess(control_plane.cluster.kubeconfig, control_plane.folder, settings) as process:
        yield process


@pytest.fixture
def team(control_plane: ControlPlane, operator: OperatorProcess, namespace: str) -> Team:
    """A namespace in which the operator serves."""
    assert operator.answer("healthz") == (200, "ok")
    return Team(control_plane.cluster.api, namespace)


@pytest.fixture
def console(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Console:
    """A shell of a person who works in that namespace."""
    return Console(control_plane.cluster.kubeconfig, namespace, tmp_path)
