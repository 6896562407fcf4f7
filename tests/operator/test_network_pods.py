"""A real API server takes the pods of every network profile, in namespaces of the Pod Security level that we say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings

from builders import Json
from finetune_plan import network_files
from finetune_plan.network_profile import profile_of
from finetune_plan.settings import PlanSettings
from plan import networks
from plan.test_network_profiles import ENTRIES, made
from testbed.api import ApiError
from testbed.cluster import Cluster
from testbed.control_plane import ControlPlane

LEVELS = ("restricted", "baseline", "privileged")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An API server alone."""
    with ControlPlane(tmp_path_factory.mktemp("bare")) as plane:
        yield plane.cluster


@pytest.fixture(scope="module")
def namespaces(bare: Cluster) -> dict[str, str]:
    """One for each level."""
    return {each: bare.namespace(each, {"pod-security.kubernetes.io/enforce": each}) for each in LEVELS}


def refusal(cluster: Cluster, namespace: str, template: Json) -> str:
    """Why the server does not take a pod; empty if it does."""
    metadata = template["metadata"] | {"name": "sample-1-worker-0", "namespace": namespace}
    try:
        cluster.api.create({"apiVersion": "v1", "kind": "Pod"} | template | {"metadata": metadata},
                           dryRun="All", fieldValidation="Strict")  # fmt: skip
    except ApiError as error:
        return error.message
    return ""


OURS: dict[str, Json] = {
    "resources alone": {"resources": {"rdma/hca": 1}, "volumes": [{"name": "v", "mountPath": "/v"}]},
    "another user": {"runAsUser": 2000},
    "root": {"runAsUser": 0},
    "a capability that baseline allows": {"runAsUser": 0, "capabilities": ["CHOWN"]},
    "a sidecar": {"sidecars": [{"name": "s", "image": "s"}]},
    "a capability that it does not": {"runAsUser": 0, "capabilities": ["SYS_PTRACE"]},
    "a sidecar with one": {"sidecars": [{"name": "s", "image": "s", "capabilities": ["NET_ADMIN"]}]},
    "the network of the node": {"hostNetwork": True},
    "files of the node": {"volumes": [{"name": "v", "hostPath": "/opt", "readOnly": True}]},
    "a privileged container": {"privileged": True},
}  # fmt: skip
"""What an administrator's own profile may ask for, one by one."""
SETTINGS = replace(
    networks.SETTINGS,
    networks={
        **networks.SETTINGS.networks,
        **{n.replace(" ", "-"): {"description": n, **e} for n, e in OURS.items()},
    },
    privileged_networks=(*network_files.names(), *(n.replace(" ", "-") for n in OURS)),
)


@pytest.mark.parametrize("name", SETTINGS.privileged_networks)
def test_the_pods_of_a_profile_are_legal_where_we_say_that_they_may_be(
    bare: Cluster, namespaces: dict[str, str], name: str
) -> None:
    are_legal_where_we_say(bare, namespaces, name, SETTINGS)


@settings(max_examples=150, deadline=None)
@given(entry=ENTRIES)
def test_any_profile_that_is_taken_makes_pods_that_are_legal_there(
    bare: Cluster, namespaces: dict[str, str], entry: Json
) -> None:
    profile, _ = made(entry)
    if profile and not profile.parameters:
        admin = PlanSettings(networks={"ours": entry}, privileged_networks=("ours",))
        are_legal_where_we_say(bare, namespaces, "ours", admin)


def are_legal_where_we_say(cluster: Cluster, namespaces: dict[str, str], name: str, admin: PlanSettings) -> None:
    template = networks.pod(networks.manifest(name, admin))
    template["spec"]["restartPolicy"] = "Never"  # as the Training Operator does
    level = LEVELS.index(profile_of(name, admin.networks).pod_security)
    assert refusal(cluster, namespaces[LEVELS[level]], template) == ""
    for stricter in LEVELS[:level]:
        assert f'violates PodSecurity "{stricter}:latest"' in refusal(cluster, namespaces[stricter], template)


def test_a_pod_that_is_not_legal_is_refused(bare: Cluster, namespaces: dict[str, str]) -> None:
    """So that the test above can fail."""
    template = networks.pod(networks.manifest("oke-host"))
    template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = False
    assert "cannot set `allowPrivilegeEscalation` to false and `privileged` to true" in refusal(
        bare, namespaces["privileged"], template
    )
