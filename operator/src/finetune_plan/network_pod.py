"""A network profile as parts of a pod in Kubernetes' own form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .network_profile import NetworkProfile, Sidecar, Volume

Json = dict[str, Any]


def spec(network: NetworkProfile) -> Json:
    """Keys of the pod's spec."""
    found: Json = {}
    if network.host_network:  # names of Services resolve only with this policy
        found |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if network.claims:
        found["resourceClaims"] = [{"name": n, "resourceClaimTemplateName": t} for n, t in network.claims.items()]
    if network.sidecars:
        found["initContainers"] = [_sidecar(each, network.volumes) for each in network.sidecars]
    return found


def resources(network: NetworkProfile) -> Json:
    """Requests and limits of the trainer alike."""
    return {name: str(amount) for name, amount in network.resources.items()}


def claims(network: NetworkProfile) -> list[Json]:
    """The claims that the trainer uses."""
    return [{"name": name} for name in network.claims]


def volumes(network: NetworkProfile) -> list[Json]:
    return [{"name": each.name, **_source(each)} for each in network.volumes]


def mounts(network: NetworkProfile) -> list[Json]:
    """Those of the trainer."""
    return [
        _mount(volume.name, volume.mount_path, read_only=volume.read_only)
        for volume in network.volumes
        if volume.mount_path
    ]


def _mount(name: str, path: str, *, read_only: bool) -> Json:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _source(volume: Volume) -> Json:
    if volume.host_path:
        return {"hostPath": {"path": volume.host_path}}
    return {"configMap": {"name": volume.config_map}} if volume.config_map else {"emptyDir": {}}


def _sidecar(sidecar: Sidecar, volumes: Iterable[Volume]) -> Json:
    """An init container that stays: it is up before the trainer starts, and ends after it (KEP-753)."""
    fixed = {each.name for each in volumes if each.read_only}
    optional = {
        "command": list(sidecar.command),
        "args": list(sidecar.args),
        "env": [{"name": name, "value": value} for name, value in sidecar.env.items()],
        "volumeMounts": [_mount(name, path, read_only=name in fixed) for name, path in sidecar.mounts.items()],
    }
    security: Json = {"runAsUser": 0, "runAsNonRoot": False}  # daemons of the node
    if sidecar.capabilities:
        security["capabilities"] = {"add": list(sidecar.capabilities)}
    return {
        "name": sidecar.name, "image": sidecar.image, "restartPolicy": "Always",
        **{key: value for key, value in optional.items() if value}, "securityContext": security,
    }  # fmt: skip
