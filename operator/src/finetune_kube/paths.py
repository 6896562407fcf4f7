"""Paths of objects and collections."""

from __future__ import annotations


def path(version: str, plural: str, namespace: str = "", name: str = "") -> str:
    """Path of an object, or of a collection without `name`, or of all namespaces without `namespace`.

    `version` is an apiVersion such as v1 or kubeflow.org/v1.
    """
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{within}/{plural}{f'/{name}' if name else ''}"
