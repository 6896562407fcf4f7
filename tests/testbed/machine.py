"""A machine inside the machine: namespaces of its own for processes, mounts and network, joined to us by one cable.

A real node writes firewall rules, bridges, mounts and daemons all over its host. In here the kernel takes all of it
away with the last process, and the last process dies with us, however we end.
"""

import json
import os
import random
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.process import Process

# What a kubelet sets on its host. These are no namespace's own, so it finds files that already say so.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


@dataclass(frozen=True)
class Cable:
    """A network of two: our end (`host`) and the machine's end (`guest`)."""

    name: str
    host: str
    guest: str


def free_cable() -> Cable:
    """A network that no interface of ours has."""
    shown = subprocess.run(["ip", "-json", "address"], check=True, capture_output=True, text=True).stdout
    taken = {address["local"].rpartition(".")[0] for link in json.loads(shown) for address in link["addr_info"]}
    third = random.choice([n for n in range(1, 255) if f"10.199.{n}" not in taken])
    return Cable(f"testbed{third}", f"10.199.{third}.1", f"10.199.{third}.2")


class Machine:
    """`process` is its first process: started, the machine is there; ended, all that ran in it is gone.

    /run is empty in there, and what is written to /var lands in `folder`.
    """

    def __init__(self, folder: Path, cable: Cable) -> None:
        self.folder, self.cable = folder, cable
        folder.mkdir(parents=True)
        ready = folder / "ready"
        unshare = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [*unshare, "sh", "-euc", self._script(ready)]
        self.process = Process(command, folder / "machine.log", ready=ready.exists)

    def connect(self) -> None:
        """Plug the cable in."""
        name, first = self.cable.name, str(self._first())
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", first)
        _ip("address", "add", f"{self.cable.host}/24", "dev", name)
        _ip("link", "set", name, "up")
        for line in ("link set lo up", f"address add {self.cable.guest}/24 dev eth0", "link set eth0 up",
                     f"route add default via {self.cable.host}"):  # fmt: skip
            self.run(["ip", *line.split()])

    def inside(self, command: Sequence[str | Path]) -> list[str]:
        """The command that runs a command in here."""
        enter = ["nsenter", f"--target={self._first()}", "--mount", "--net", "--ipc", "--uts", "--pid", "--"]
        # Whoever ends nsenter means the command.
        return [*enter, "setpriv", "--pdeathsig", "TERM", *map(str, command)]

    def run(self, command: Sequence[str | Path], *, stdin: int | None = None) -> str:
        """Run a command in here to its end, and return what it wrote; MachineError with its words if it fails."""
        done = subprocess.run(self.inside(command), stdin=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineError(f"{shlex.join(map(str, command))} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def kill(self, process: Process) -> None:
        """End a command of inside() by signal 9. Process.stop() would end nsenter, and give the command time."""
        os.kill(_only_child(process.pid), signal.SIGKILL)
        process.wait_ended(60)
        process.stop()

    def _first(self) -> int:
        """Process id of the machine's first process, as we count."""
        return _only_child(self.process.pid)

    def _script(self, ready: Path) -> str:
        upper, work, sysctls = (self.folder / name for name in ("var", "var-work", "sysctls"))
        for path in (upper, work, sysctls):
            path.mkdir()
        lines = [
            "mount -t tmpfs tmpfs /run",
            f"mount -t overlay overlay -o lowerdir=/var,upperdir={upper},workdir={work} /var",
        ]
        for name, value in SYSCTLS.items():
            file = sysctls / name.replace("/", ".")
            file.write_text(f"{value}\n")
            lines.append(f"mount --bind {file} /proc/sys/{name}")
        # The shell waits for ever, and so takes in the orphans that only the first process can.
        return "; ".join([*lines, f"touch {ready}", "sleep infinity & wait"])


class MachineError(Exception):
    """A command in the machine failed; the message carries its words."""


def _only_child(pid: int) -> int:
    """Of `unshare` or `nsenter`: the command."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
