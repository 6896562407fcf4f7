"""What an operator and a trainer image agree on besides the run configuration: command, environment and paths.

Later runs of a job keep the image that it was accepted with, so they keep this too: the status pins it, and an
operator of another version renders what is pinned (docs/adr/0032). Raise VERSION when operators of today would render
a pinned contract wrongly: they then leave later runs to a newer one, instead of starting them with a part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .mounts import CLAIMS, CONFIG_MAPS

VERSION = 1

PATHS: Mapping[str, str] = {
    "run-config": "/etc/finetune",
    "shared-memory": "/dev/shm",  # noqa: S108
    "scratch": "/scratch",
    "tmp": "/tmp",  # noqa: S108
    "output": "/mnt/output",
    "claims": CLAIMS,
    "configmaps": CONFIG_MAPS,
    "cache": "/mnt/cache",
    "credentials": "/etc/finetune/credentials",
}
"""Where the volumes of a pod are mounted. Version 0.1.0 pinned no contract; its jobs have these paths."""


@dataclass(frozen=True)
class Contract:
    """One version of it, with the values for one job."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    """Without pods.env, which the spec keeps."""
    paths: Mapping[str, str]


def to_text(contract: Contract) -> str:
    """As the status has it."""
    return json.dumps({"version": VERSION, **asdict(contract)}, separators=(",", ":"), sort_keys=True)


def is_known(text: str) -> bool:
    """Whether this operator renders what was pinned."""
    try:
        return bool(json.loads(text)["version"] <= VERSION)
    except (ValueError, TypeError, KeyError):
        return False


def from_text(text: str) -> Contract:
    """What was pinned, of a known version."""
    found = json.loads(text)
    return Contract(tuple(found["command"]), found["env"], {**PATHS, **found["paths"]})
