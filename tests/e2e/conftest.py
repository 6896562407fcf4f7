"""One cluster with a real node for all of these tests, and the operator on it as its chart installs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from chart.helm import CHART, RELEASE, helm
from e2e.team import RESTRICTED, Team, explained
from testbed.build import BuildError
from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane
from testbed.images import ImageError, images
from testbed.machine import free_cable
from testbed.node import api_server_flags, start_node
from testbed.packages import MissingError, ensure_packages
from testbed.training_operator import pytorchjob_crd, start_training_operator
from testbed.watch import wait_for_all

VALUES = {"settings": {"progressSeconds": 1, "sharedMemory": "128Mi"}}
"""The chart as it is, but for a cluster that is small and a test that is short."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """API server with RBAC, controllers, scheduler, the stock Training Operator with its webhook, and one node."""
    folder, cable = tmp_path_factory.mktemp("cluster"), free_cable()
    try:
        ensure_packages()
        with (
            images() as store,
            ControlPlane(
                folder,
                crds=[pytorchjob_crd()],
                controllers=True,
                scheduler=True,
                flags=api_server_flags(cable),
                address=cable.host,
            ) as plane,
        ):
            start_training_operator(plane, webhook=True)
            start_node(plane, cable, store)
            yield plane.cluster
    except (BuildError, ImageError, MissingError) as error:
        pytest.exit(f"no cluster with a real node: {error}", returncode=2)


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[str]:
    """The namespace in which the chart's Deployment runs, from our image."""
    namespace = cluster.namespace("operator", RESTRICTED)
    with helm(cluster, namespace) as client:
        client.install(CHART, RELEASE, VALUES)
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        with explained(cluster, namespace):
            wait_for_all(cluster.api, path, lambda found: found[0]["status"].get("availableReplicas"), timeout_s=120)
        yield namespace


@pytest.fixture(scope="session")
def team(cluster: Cluster, operator: str, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """People with a namespace under the strictest Pod Security, a volume with a small model, and rows."""
    folder = tmp_path_factory.mktemp("volume")
    os.chown(folder, 1000, 1000)
    return Team(cluster, cluster.namespace("team", RESTRICTED), folder).furnished()
