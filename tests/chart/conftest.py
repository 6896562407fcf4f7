"""A control plane without our definitions: the chart brings them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane
from testbed.training_operator import pytorchjob_crd


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """API server and controller manager, and PyTorchJobs known."""
    folder = tmp_path_factory.mktemp("bare")
    with ControlPlane(folder, crds=[pytorchjob_crd()], controllers=True) as plane:
        yield plane.cluster
