"""People with few rights."""

from __future__ import annotations

import time
from pathlib import Path

from builders import Json
from chart.helm import NAME, find, render
from testbed.control_plane import ControlPlane

GROUP = "rbac.authorization.k8s.io"
PATIENCE_S = 180


def person(control_plane: ControlPlane, namespace: str, rules: list[Json]) -> Path:
    """A kubeconfig of somebody with these rights in the namespace."""
    api, metadata = control_plane.cluster.api, {"name": "person", "namespace": namespace}
    kubeconfig = control_plane.cluster.service_account(namespace, "person")
    api.create({"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "person", "namespace": namespace}
    role = {"apiGroup": GROUP, "kind": "Role", "name": "person"}
    api.create({"apiVersion": f"{GROUP}/v1", "kind": "RoleBinding", "metadata": metadata, "roleRef": role,
                "subjects": [subject]})  # fmt: skip
    _until_granted(control_plane, namespace, rules[0])
    return kubeconfig


def editor(control_plane: ControlPlane, namespace: str) -> Path:
    """A kubeconfig of somebody with Kubernetes' role `edit` in the namespace, and what the chart adds to it."""
    chart = render()
    roles = (find(chart, "ClusterRole", f"{NAME}-{name}") for name in ("view", "edit"))
    kubeconfig = person(control_plane, namespace, [rule for role in roles for rule in role["rules"]])
    subject = {"kind": "ServiceAccount", "name": "person", "namespace": namespace}
    role = {"apiGroup": GROUP, "kind": "ClusterRole", "name": "edit"}
    control_plane.cluster.api.create({
        "apiVersion": f"{GROUP}/v1", "kind": "RoleBinding", "metadata": {"name": "editor", "namespace": namespace},
        "roleRef": role, "subjects": [subject],
    })  # fmt: skip
    _until_granted(control_plane, namespace, {"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]})
    return kubeconfig


def _until_granted(control_plane: ControlPlane, namespace: str, rule: Json) -> None:
    """The API server watches roles and bindings: on a busy machine it refuses for seconds what it has stored."""
    user = f"system:serviceaccount:{namespace}:person"
    asked = {"namespace": namespace, "group": rule["apiGroups"][0], "verb": rule["verbs"][0]}
    resource, _, subresource = rule["resources"][0].partition("/")
    asked |= {"resource": resource, "subresource": subresource}
    review: Json = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
                    "spec": {"user": user, "resourceAttributes": asked}}  # fmt: skip
    give_up = time.monotonic() + PATIENCE_S
    while not control_plane.cluster.api.create(review)["status"]["allowed"]:
        assert time.monotonic() < give_up, f"{user} does not get {rule} within {PATIENCE_S} s"
        time.sleep(0.05)
