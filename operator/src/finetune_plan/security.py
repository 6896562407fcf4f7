"""Security contexts of every pod that we create: Pod Security's restricted level, and a little more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network_profile import NetworkProfile

USER = 1000
"""The image's own user; files on volumes belong to its group."""


def pod_security() -> dict[str, Any]:
    """The security context of a pod."""
    return {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def container_security(network: NetworkProfile | None = None) -> dict[str, Any]:
    """The security context of the trainer's container: an administrator has allowed what the network needs."""
    strict = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if network is None:
        return strict
    added = {"add": list(network.capabilities)} if network.capabilities else {}
    context = strict | {"capabilities": {"drop": ["ALL"]} | added}
    if network.privileged:  # which Kubernetes refuses beside allowPrivilegeEscalation: false, and drops nothing
        context = {"privileged": True, "readOnlyRootFilesystem": True, "capabilities": added}
    user = network.run_as_user
    return context if user is None else context | {"runAsUser": user, "runAsNonRoot": user != 0}
