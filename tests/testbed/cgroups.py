"""The control groups of a node's pods: the one thing that a node leaves on its host, whatever namespaces it has."""

import os
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PATIENCE_S = 60


def make_cgroups(name: str) -> None:
    """A group for a kubelet's pods, in every hierarchy of version 1, or in the one of version 2."""
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
    cpuset = ROOT / "cpuset"
    for file in ("cpuset.cpus", "cpuset.mems"):  # empty at first in version 1: nothing could run in there
        if (cpuset / file).exists():
            (cpuset / name / file).write_text((cpuset / file).read_text())


def remove_cgroups(name: str) -> None:
    """Remove what make_cgroups() made, and all below it. Processes that were killed take a moment to be gone."""
    give_up = time.monotonic() + PATIENCE_S
    while (left := [group for hierarchy in _hierarchies() if (group := hierarchy / name).exists()]) and (
        time.monotonic() < give_up
    ):
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):  # something runs in there
                    Path(folder).rmdir()
        time.sleep(0.05)


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [path for path in ROOT.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink()]
