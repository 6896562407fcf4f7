"""A cluster with a real node, and the operator on it as its chart installs it: for tests and for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builders import Json
from chart.helm import CHART, RELEASE, helm
from e2e.team import RESTRICTED, explained
from testbed.build import BuildError
from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane
from testbed.images import ImageError, images
from testbed.machine import MachineError, free_cable
from testbed.node import Node, api_server_flags, start_node
from testbed.packages import MissingError, ensure_packages
from testbed.process import ProcessError
from testbed.training_operator import pytorchjob_crd, start_training_operator
from testbed.watch import WaitError, wait_for_all

SETTINGS: Json = {"progressSeconds": 1, "sharedMemory": "128Mi"}
VALUES: Json = {"settings": SETTINGS}
"""The chart as it is, but for a cluster that is small and jobs that are short."""
FAILURES = (BuildError, ImageError, MachineError, MissingError, ProcessError, WaitError)
"""What there is no cluster after; each error says why."""
Say = Callable[[str], object]


def silent(sentence: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Bed:
    """A cluster and its only node."""

    cluster: Cluster
    node: Node


@contextmanager
def real_cluster(folder: Path, say: Say = silent) -> Iterator[Bed]:
    """API server with RBAC, controllers, scheduler, the stock Training Operator with its webhook, and one node."""
    say("checking for root, disk and Debian packages")
    ensure_packages()
    cable = free_cable()
    say("building the images; ten minutes the first time, seconds later")
    with images() as store:
        say("starting the control plane; building it first, if it was never built, takes ten minutes")
        with ControlPlane(
            folder,
            crds=[pytorchjob_crd()],
            controllers=True,
            scheduler=True,
            flags=api_server_flags(cable),
            address=cable.host,
        ) as plane:
            say("starting the Training Operator")
            start_training_operator(plane, webhook=True)
            say("starting the node; copying the images to it, the first time, takes minutes")
            yield Bed(plane.cluster, start_node(plane, cable, store))


@contextmanager
def installed_operator(cluster: Cluster, say: Say = silent) -> Iterator[str]:
    """The namespace in which the chart's Deployment runs, from our image."""
    say("installing the chart")
    namespace = cluster.namespace("operator", RESTRICTED)
    with helm(cluster, namespace) as client:
        client.install(CHART, RELEASE, VALUES)
        wait_for_operator(cluster, namespace)
        yield namespace


@contextmanager
def changed_operator(cluster: Cluster, namespace: str, values: Json) -> Iterator[None]:
    """The release with other values, until the end of the block."""
    with helm(cluster, namespace) as client:
        client.upgrade(CHART, RELEASE, values)
        try:
            wait_for_operator(cluster, namespace)
            yield
        finally:
            client.upgrade(CHART, RELEASE, VALUES)
            wait_for_operator(cluster, namespace)


def wait_for_operator(cluster: Cluster, namespace: str) -> None:
    """Until the Deployment is available as it was applied last."""
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    with explained(cluster, namespace):
        wait_for_all(cluster.api, path, lambda found: _is_available(found[0]), timeout_s=120)


def _is_available(deployment: Json) -> bool:
    status = deployment["status"]
    current = status.get("observedGeneration") == deployment["metadata"]["generation"]
    return bool(current and status.get("updatedReplicas") and status.get("availableReplicas"))
