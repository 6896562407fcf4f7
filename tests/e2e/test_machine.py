"""The machine that holds the node leaves nothing behind, however the run that made it ends."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.machine import Machine, MachineError, free_cable

SCRIPT = """
import sys, time
from pathlib import Path
from testbed.machine import Cable, Machine
machine = Machine(Path(sys.argv[1]), Cable(*sys.argv[2:]))
with machine.process:
    machine.connect()
    machine.run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
    print(machine.process.pid, flush=True)
    time.sleep(1000)
"""


def processes(folder: Path) -> set[int]:
    """Whoever has the machine's /var, and so the machine's mounts."""
    found = set()
    for mounts in Path("/proc").glob("[0-9]*/mounts"):
        try:
            text = mounts.read_text()
        except OSError:  # it has ended meanwhile
            continue
        if f"upperdir={folder}/" in text:
            found.add(int(mounts.parent.name))
    return found


def test_nothing_is_left_of_a_machine_whose_run_was_killed(tmp_path: Path) -> None:
    cable, folder = free_cable(), tmp_path / "machine"
    command = [sys.executable, "-c", SCRIPT, str(folder), cable.name, cable.host, cable.guest]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        try:
            assert run.stdout is not None
            run.stdout.readline()
            inside = processes(folder)
            assert len(inside) >= 3, "the first process, its sleep and the daemon"
            watches = [os.pidfd_open(pid) for pid in inside]
            assert Path(f"/sys/class/net/{cable.name}").exists()
        finally:
            run.kill()
    for watch in watches:
        assert select.select([watch], [], [], 10)[0], "a process outlived the run"
        os.close(watch)
    wait_for_no_interface(cable.name)


def wait_for_no_interface(name: str) -> None:
    """The kernel takes a dead network's interfaces away in its own time."""
    give_up = time.monotonic() + 20
    while Path(f"/sys/class/net/{name}").exists():
        assert time.monotonic() < give_up, f"{name} outlived its machine"
        time.sleep(0.05)


def test_a_command_that_fails_in_there_says_why(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine", free_cable())
    with machine.process, pytest.raises(MachineError, match="ended with 3: no such thing"):
        machine.run(["sh", "-c", "echo no such thing >&2; exit 3"])
