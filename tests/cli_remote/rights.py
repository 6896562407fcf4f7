"""People with few rights."""

from __future__ import annotations

from pathlib import Path

from builders import Json
from chart.helm import NAME, find, render
from testbed.control_plane import ControlPlane

GROUP = "rbac.authorization.k8s.io"


def person(control_plane: ControlPlane, namespace: str, rules: list[Json]) -> Path:
    """A kubeconfig of somebody with these rights in the namespace."""
    api, metadata = control_plane.cluster.api, {"name": "person", "namespace": namespace}
    kubeconfig = control_plane.cluster.service_account(namespace, "person")
    api.create({"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": metadata, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "person", "namespace": namespace}
    role = {"apiGroup": GROUP, "kind": "Role", "name": "person"}
    api.create({"apiVersion": f"{GROUP}/v1", "kind": "RoleBinding", "metadata": metadata, "roleRef": role,
                "subjects": [subject]})  # fmt: skip
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
    return kubeconfig
