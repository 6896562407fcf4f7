"""Security contexts of every pod that we create: Pod Security's restricted level, and a little more."""

from __future__ import annotations

from typing import Any

USER = 1000
"""The image's own user; files on volumes belong to its group."""


def pod_security() -> dict[str, Any]:
    """The security context of a pod."""
    return {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def container_security() -> dict[str, Any]:
    """The security context of each of its containers."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
