"""One control plane and one operator for all tests that do not hurt them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operating.process import OperatorProcess
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, namespace

__all__ = ["cluster", "control_plane", "namespace"]


@pytest.fixture(scope="session")
def operator(control_plane: ControlPlane) -> Iterator[OperatorProcess]:
    """The operator, serving the whole cluster."""
    with OperatorProcess(control_plane.cluster.kubeconfig, control_plane.folder) as process:
        yield process


@pytest.fixture
def team(control_plane: ControlPlane, operator: OperatorProcess, namespace: str) -> Team:
    """A namespace in which the operator serves."""
    assert operator.answer("healthz") == (200, "ok")
    return Team(control_plane.cluster.api, namespace)
