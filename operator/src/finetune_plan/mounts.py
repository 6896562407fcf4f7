"""Where a URI of the job lies inside a pod, and which volume brings it there."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.validation.uris import Scheme, Use

CLAIMS = "/mnt/claims"
CONFIG_MAPS = "/mnt/configmaps"


@dataclass(frozen=True)
class Mount:
    """A path inside the pod, and the volume under it if there is one."""

    path: str
    claim: str = ""
    config_map: str = ""


def uri_of(path: str) -> str:
    """The URI of a place inside the pod, as a person outside of it names it."""
    inside = path.removeprefix(f"{CLAIMS}/")
    return path if inside == path else f"pvc://{inside}"


def mount(uri: str, use: Use) -> Mount:
    """The place of a URI; URIs that the trainer fetches by itself stay as they are."""
    source = use.parse(uri)
    if source.scheme is Scheme.PVC:
        return Mount(f"{CLAIMS}/{source.name}/{source.path}".rstrip("/"), claim=source.name)
    if source.scheme is Scheme.CONFIG_MAP:
        return Mount(f"{CONFIG_MAPS}/{source.name}/{source.path}", config_map=source.name)
    return Mount(uri)
