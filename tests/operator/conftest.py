"""One control plane and one operator for all tests that do not hurt them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from operating.plane import unserved
from operating.process import OperatorProcess
from operating.team import Team
from testbed.control_plane import ControlPlane
from testbed.fixtures import cluster, control_plane, kubelet, namespace

EVICT_AT_ONCE = [f"--default-{state}-toleration-seconds=1" for state in ("not-ready", "unreachable")]

__all__ = ["cluster", "control_plane", "kubelet", "namespace"]


@pytest.fixture(scope="session")
def operator(control_plane: ControlPlane) -> Iterator[OperatorProcess]:
    """The operator, serving the whole cluster."""
    with OperatorProcess(control_plane.cluster.kubeconfig, control_plane.folder) as process:
        yield process


@pytest.fixture(scope="session")
def scheduling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane whose scheduler runs and whose nodes the test plays, and an operator."""
    folder = tmp_path_factory.mktemp("scheduling")
    with unserved(folder, scheduler=True, flags=EVICT_AT_ONCE) as found:
        found.run("operator", OperatorProcess(found.cluster.kubeconfig, folder))
        yield found


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane without an operator, for the tests of one file."""
    with unserved(tmp_path_factory.mktemp("plane")) as found:
        yield found


@pytest.fixture
def lonely(plane: ControlPlane) -> Team:
    """A namespace that nobody serves yet."""
    return Team(plane.cluster.api, plane.cluster.namespace())


@pytest.fixture
def team(control_plane: ControlPlane, operator: OperatorProcess, namespace: str) -> Team:
    """A namespace in which the operator serves."""
    assert operator.answer("healthz") == (200, "ok")
    return Team(control_plane.cluster.api, namespace)
