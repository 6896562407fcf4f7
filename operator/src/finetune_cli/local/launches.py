"""From the plan's workload to local processes in place of its pods.

Command and environment are those of the plan. Only what a cluster provides differs: paths of mounted files, the
address of rank 0, and the python interpreter.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.runtime.protocol import CONFIG_ENV, REPORT_ENV
from finetune_plan import contract
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.workload import Workload, rendezvous

LOOPBACK = "127.0.0.1"
POD_VOLUMES = tuple(contract.PATHS[name] for name in ("scratch", "cache", "credentials"))
"""Mounts of pods. Variables that point into them are left out, so that the user's own caches and tokens are used."""
LAUNCHERS = ("PET_", "FINETUNE_", "TORCHELASTIC_")
RANKS = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables of another distributed run, in which this command may have been started."""


@dataclass(frozen=True)
class Launch:
    """The command and environment of one replica."""

    name: str
    """The host name under which the other replicas of the run reach it on a cluster."""
    node: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    config: Path
    report: Path
    """File for the final report: the termination message of a pod."""


def launches(work: Workload, folder: Path, port: int, inherited: Mapping[str, str]) -> tuple[Launch, ...]:
    """The replicas of `work`. `folder` holds their files, `port` is free, `inherited` is our own environment."""
    return tuple(_launch(work, node, folder, port, inherited) for node in range(work.nodes))


def free_port() -> int:
    """A port of the loopback interface that is currently unused."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _launch(work: Workload, node: int, folder: Path, port: int, inherited: Mapping[str, str]) -> Launch:
    name = BACKEND.host(work.name, node)
    program, *arguments = work.contract.command
    config, report = folder / name / "run.json", folder / name / "report.json"
    env = {name: value for name, value in inherited.items() if not name.startswith(LAUNCHERS) and name not in RANKS}
    env |= {name: value for name, value in work.env.items() if not value.startswith(POD_VOLUMES)}
    env |= rendezvous(work, node, LOOPBACK, port)
    env |= {CONFIG_ENV: str(config), REPORT_ENV: str(report)}
    env["TMPDIR"] = str(config.parent)  # a pod has a /tmp of its own, which is removed with the pod
    env["PYTHONSAFEPATH"] = "1"  # a file torch.py in the current folder must not shadow torch
    command = (sys.executable if program == "python" else program, *arguments)
    return Launch(name, node, command, env, config, report)
