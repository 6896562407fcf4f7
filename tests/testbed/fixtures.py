"""Pytest fixtures over the test bed; a test file or conftest.py imports the ones that it uses.

`control_plane` is shared by a whole session (one per xdist worker); tests stay apart by namespaces. A test that
kills, restarts or configures servers makes its own ControlPlane in its own folder instead.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.codegen.crd import crd
from testbed.cluster import Cluster, existing_cluster
from testbed.control_plane import ControlPlane
from testbed.kubelet import Kubelet
from testbed.training_operator import pytorchjob_crd, start_training_operator

# Set to a kubeconfig to run the tests that need only `cluster` against a cluster that already runs.
EXISTING = "FINETUNE_TEST_KUBECONFIG"


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """API server with both CRDs, controller manager, Training Operator (its webhook off); no nodes: pods pend."""
    folder = tmp_path_factory.mktemp("control-plane")
    with ControlPlane(folder, crds=[pytorchjob_crd(), crd()], audit=True, controllers=True) as plane:
        start_training_operator(plane)
        yield plane


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The shared control plane's cluster, or the existing one that FINETUNE_TEST_KUBECONFIG names."""
    existing = os.environ.get(EXISTING)
    if existing:
        with existing_cluster(Path(existing), tmp_path_factory.mktemp("existing-cluster")) as found:
            yield found
    else:
        plane: ControlPlane = request.getfixturevalue("control_plane")
        yield plane.cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace for one test, deleted after it (its contents go in the background)."""
    name = cluster.namespace()
    yield name
    cluster.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def kubelet(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Kubelet]:
    """A node whose kubelet answers for logs and commands, and runs no pods."""
    with Kubelet(
        control_plane.cluster.api, control_plane.certificate, control_plane.key, namespace, tmp_path
    ) as node:
        yield node
