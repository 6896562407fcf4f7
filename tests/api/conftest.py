"""A real API server with our CRD and admission policy, for the tests that hold it against our own judge."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import resource
from testbed.api import ApiError, Json
from testbed.cluster import Cluster
from testbed.fixtures import cluster, control_plane, namespace

__all__ = ["cluster", "control_plane", "namespace"]  # fixtures

CRDS = Path(__file__).parents[2] / "crds"
Refusal = Callable[..., ApiError | None]


@pytest.fixture(scope="session")
def server(cluster: Cluster) -> Cluster:
    """The cluster with the CRD and the policy in force."""
    cluster.install_crd(CRDS / "finetunejobs.yaml")
    done = cluster.kubectl("apply", "--server-side", "-f", str(CRDS / "admission-policy.yaml"))
    assert done.returncode == 0, done.stderr
    wait_for_policy(cluster)
    return cluster


@pytest.fixture
def refusal(server: Cluster, namespace: str) -> Refusal:
    """What the server says of a job, or None if it would take it. query: fieldValidation."""

    def ask(job: Json, **query: str) -> ApiError | None:
        metadata = job["metadata"] | {"namespace": namespace}
        try:
            server.api.create(job | {"metadata": metadata}, dryRun="All", **({"fieldValidation": "Strict"} | query))
        except ApiError as error:
            return error
        return None

    return ask


def wait_for_policy(cluster: Cluster, *, in_force: bool = True) -> None:
    """The API server takes up a policy some time after it was stored, and shows nowhere that it did."""
    job = resource({"training.surprise": 1})
    job["metadata"]["namespace"] = "default"
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        if _refuses(cluster, job) == in_force:
            return
    pytest.fail(f"30 s on, the admission policy is still {'not ' if in_force else ''}in force")


def _refuses(cluster: Cluster, job: Json) -> bool:
    try:
        cluster.api.create(job, dryRun="All")
    except ApiError as error:
        return "unknown keys: spec.training.surprise" in error.message
    return False
