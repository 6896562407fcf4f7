"""From the plan's workload to the processes that stand in for its pods.

Command and environment are the plan's own. Only what a pod would get from its cluster differs: paths of
mounted files, the address of rank 0, and which python runs.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.runtime.protocol import CONFIG_ENV, REPORT_ENV
from finetune_plan import workload as w
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.workload import Workload

LOOPBACK = "127.0.0.1"
POD_VOLUMES = (w.SCRATCH, w.CACHE, w.CREDENTIALS)
"""Mounts that are not here. Variables that point into them are left out: the user's own caches and tokens
serve instead."""
LAUNCHERS = ("PET_", "FINETUNE_", "TORCHELASTIC_")
RANKS = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Variables of some other run that this shell may be part of."""


@dataclass(frozen=True)
class Launch:
    """One replica, ready to be started."""

    name: str
    """As the others of its run would find it on a cluster."""
    node: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    config: Path
    report: Path
    """Where the replica leaves its final report, as a pod leaves its termination message."""


def launches(work: Workload, folder: Path, port: int, inherited: Mapping[str, str]) -> tuple[Launch, ...]:
    """The replicas of `work`. `folder` is for their files, `port` a free one, `inherited` this process' env."""
    return tuple(_launch(work, node, folder, port, inherited) for node in range(work.nodes))


def free_port() -> int:
    """A port of the loopback interface that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _launch(work: Workload, node: int, folder: Path, port: int, inherited: Mapping[str, str]) -> Launch:
    name = BACKEND.host(work.name, node)
    config, report = folder / name / "run.json", folder / name / "report.json"
    env = {name: value for name, value in inherited.items() if not _of_another_run(name)}
    env |= {name: value for name, value in work.env.items() if not value.startswith(POD_VOLUMES)}
    env |= w.rendezvous(work, node, LOOPBACK, port)
    env |= {CONFIG_ENV: str(config), REPORT_ENV: str(report)}
    env["TMPDIR"] = str(config.parent)  # as a pod has a /tmp of its own, which goes when the pod goes
    env["PYTHONSAFEPATH"] = "1"  # a file torch.py in the user's folder is not the trainer's torch
    return Launch(name, node, _command(work.command), env, config, report)


def _command(command: tuple[str, ...]) -> tuple[str, ...]:
    program, *arguments = command
    return (sys.executable if program == "python" else program, *arguments)


def _of_another_run(name: str) -> bool:
    return name.startswith(LAUNCHERS) or name in RANKS
