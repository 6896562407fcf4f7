"""One cluster with a real node for all of these tests, and the operator on it as its chart installs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.bed import Bed, installed_operator, real_cluster
from e2e.team import RESTRICTED, Team
from testbed.build import BuildError
from testbed.cluster import Cluster
from testbed.images import ImageError
from testbed.packages import MissingError


@pytest.fixture(scope="session")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    try:
        with real_cluster(tmp_path_factory.mktemp("cluster")) as found:
            yield found
    except (BuildError, ImageError, MissingError) as error:
        pytest.exit(f"no cluster with a real node: {error}", returncode=2)


@pytest.fixture(scope="session")
def cluster(bed: Bed) -> Cluster:
    return bed.cluster


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[str]:
    """The namespace of the operator."""
    with installed_operator(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="session")
def team(cluster: Cluster, operator: str, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """People with a namespace under the strictest Pod Security, a volume with a small model, and rows."""
    return Team(cluster, cluster.namespace("team", RESTRICTED), tmp_path_factory.mktemp("volume")).furnished()
