"""The chart on a real API server: what it installs is taken, is admitted, and goes again, but for what must stay."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.conftest import wait_for_policy
from builders import Json, resource
from chart.helm import CHART, NAME, RELEASE, helm, render
from chart.test_render import EVERYTHING, MATRIX
from finetune_api.codegen import policy
from testbed.api import ApiError, path_of
from testbed.cluster import Cluster
from testbed.watch import wait_for, wait_for_all

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
KEPT = (CRD, path_of(policy.policy()), path_of(policy.binding()))
RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
POD_MONITOR: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "names": {"kind": "PodMonitor", "plural": "podmonitors"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""The Prometheus Operator's resource by name only."""


@pytest.fixture(scope="module")
def prod(bare: Cluster) -> Iterator[str]:
    """A namespace with the strictest Pod Security, with the chart installed as it is."""
    name = bare.namespace("prod", RESTRICTED)
    with helm(bare, name) as client:
        client.install(CHART, RELEASE)
        yield name
        client.uninstall(RELEASE, ignore_not_found=True)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_server_takes_every_manifest_without_a_warning(bare: Cluster, values: Json) -> None:
    bare.install_crd(POD_MONITOR)
    namespace = bare.namespace("dry", RESTRICTED)
    values = values | ({"settings": {"watchNamespace": namespace}} if "settings" in values else {})
    manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": render(values, namespace)})
    done = bare.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifests)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_pod_passes_the_strictest_pod_security(bare: Cluster, prod: str) -> None:
    [pod] = wait_for_all(bare.api, f"/api/v1/namespaces/{prod}/pods", lambda pods: len(pods) == 1)
    assert pod["spec"]["serviceAccountName"] == NAME
    [volume] = pod["spec"]["volumes"]
    assert "projected" in volume, "the token, and nothing else"


PATIENCE_S = 180
READ, CHANGE = ("get", "list", "watch"), ("create", "patch", "update", "delete", "deletecollection")


@pytest.mark.parametrize(("kind", "may"), [("view", READ), ("edit", READ + CHANGE), ("admin", READ + CHANGE)])
def test_people_with_kubernetes_own_roles_can_work_with_jobs(
    bare: Cluster, prod: str, kind: str, may: tuple[str, ...]
) -> None:
    team = bare.namespace("team")
    bare.api.create({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "people", "namespace": team},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": kind},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ada"}],
    })  # fmt: skip
    role = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{kind}"
    wait_for(bare.api, role, lambda found: found and set(may) <= _verbs(found, "finetunejobs"))
    _until_may(bare, "ada", may[-1], team)
    assert [verb for verb in READ + CHANGE if _may(bare, "ada", verb, team)] == list(may)
    assert _may(bare, "ada", "get", team, "--subresource=status")
    assert not _may(bare, "ada", "patch", team, "--subresource=status"), "only the operator says how a job stands"


def test_removing_the_release_leaves_the_jobs_and_nothing_of_the_operator(bare: Cluster, prod: str) -> None:
    """And the same release can be installed again over what stayed."""
    team = bare.namespace("team")
    bare.api.create(resource() | {"metadata": {"name": "sample", "namespace": team}})
    job = f"/apis/finetune.dev/v1alpha1/namespaces/{team}/finetunejobs/sample"
    before = bare.api.get(job)
    with helm(bare, prod) as client:
        said = client.uninstall(RELEASE, wait="watcher")
        assert "kept due to the resource policy" in str(said)
        assert _owned(bare) == []
        assert bare.api.get(job) == before
        assert all(bare.api.find(path) for path in KEPT)
        wait_for_policy(bare)
        client.install(CHART, RELEASE)
        assert bare.api.get(job) == before


def test_an_upgrade_renews_the_definition(bare: Cluster, prod: str, tmp_path: Path) -> None:
    """Helm would leave a definition in a chart's folder crds as it is for ever."""
    older = shutil.copytree(CHART, tmp_path / CHART.name)
    definition = older / "files" / "finetunejobs.yaml"
    definition.write_text(
        definition.read_text().replace("    categories:\n    - finetune\n", "    categories: [old]\n")
    )
    with helm(bare, prod) as client:
        client.upgrade(older, RELEASE)
        assert _categories(bare) == ["old"]
        client.upgrade(CHART, RELEASE)
        assert _categories(bare) == ["finetune"]


def test_a_second_release_in_one_namespace_shares_what_the_cluster_has_once(bare: Cluster, prod: str) -> None:
    team = bare.namespace("team")
    with helm(bare, team) as client:
        client.install(CHART, RELEASE, _NO_SHARED | {"settings": {"watchNamespace": team}})
        client.uninstall(RELEASE, wait="watcher")
    with pytest.raises(ApiError, match="not found"):
        bare.api.get(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{team}/roles/{NAME}")
    assert bare.api.get(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{NAME}")


def test_the_rights_of_one_namespace_end_there(bare: Cluster) -> None:
    home, served, other = (bare.namespace(name) for name in ("home", "served", "other"))
    with helm(bare, home) as client:
        client.install(CHART, "one", _NO_SHARED | {"settings": {"watchNamespace": served}})
        who = f"system:serviceaccount:{home}:one-finetune-operator"
        _until_may(bare, who, "watch", served)
        answers = {where for where in (home, served, other) if _may(bare, who, "watch", where)}
        client.uninstall("one", wait="watcher")
    assert answers == {served}


_NO_SHARED: Json = {"crds": {"install": False}, "admissionPolicy": {"install": False}, "rbac": {"userRoles": False}}


def _until_may(cluster: Cluster, who: str, verb: str, namespace: str) -> None:
    """The API server watches roles and bindings: a busy one refuses for seconds what it has stored."""
    give_up = time.monotonic() + PATIENCE_S
    while not _may(cluster, who, verb, namespace):
        assert time.monotonic() < give_up, f"{who} may not {verb} in {namespace} within {PATIENCE_S} s"
        time.sleep(0.05)


def _may(cluster: Cluster, who: str, verb: str, namespace: str, *flags: str) -> bool:
    done = cluster.kubectl("auth", "can-i", verb, "finetunejobs", "-n", namespace, "--as", who, *flags)
    assert done.stdout in ("yes\n", "no\n"), done.stderr
    return done.stdout == "yes\n"


def _categories(cluster: Cluster) -> list[str]:
    found: list[str] = cluster.api.get(CRD)["spec"]["names"]["categories"]
    return found


def _verbs(role: Json, plural: str) -> set[str]:
    return {v for rule in role.get("rules") or () if plural in rule["resources"] for v in rule["verbs"]}


def _owned(cluster: Cluster) -> list[str]:
    """Objects with the release's label, of every kind that the chart has, but for what is kept."""
    kinds = {m["kind"].lower() for m in render(EVERYTHING)}
    words = ",".join(sorted(kinds))
    done = cluster.kubectl("get", words, "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "name")
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
