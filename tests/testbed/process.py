"""Starts, watches and ends one server process; every piece of the test bed runs through here.

A process is always ended by its own id, also when a test fails; its log lies in the bed's own folder, and the
end of that log stands in the error when the process does not come up.
"""

import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

LOG_TAIL = 25
POLL_S = 0.03
# Below Linux' range for outgoing connections (32768 up) and below Kubernetes' NodePorts (30000 up), so that
# nothing takes the port between our asking and the server's listening.
PORTS = range(12000, 30000)


class ProcessError(Exception):
    """A process ended or did not become ready; the message carries the end of its log."""


class Process:
    """One server process. `with` starts it and waits until `ready()` is true; leaving the block ends it.

    stop() and start() may be called in between: a test that kills a server starts it again on the same ports.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        timeout_s: float = 180,
        outlived: bool = False,
    ) -> None:
        """outlived: the thread that starts the process also waits for its end, be it the main one or another."""
        self.name = Path(command[0]).name
        self.log = log
        self._command = [*_leash(outlived), *command]
        self._env = dict(env) if env is not None else None
        self._ready = ready
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; ProcessError when it is not running."""
        if self._child is None:
            raise ProcessError(f"{self.name} is not started")
        return self._child.pid

    def start(self) -> None:
        """Start without waiting, for pieces that come up together; wait_ready() follows."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, start_new_session=True
            )

    def wait_ready(self) -> None:
        """Return once `ready()` is true; ProcessError when the process ends first or the time is over."""
        give_up = time.monotonic() + self._timeout_s
        while not self._ready():
            code = self._child.poll() if self._child else None
            if code is not None:
                raise ProcessError(f"{self.name} ended with code {code} before it was ready.\n{self.tail()}")
            if time.monotonic() > give_up:
                raise ProcessError(f"{self.name} was not ready after {self._timeout_s:.0f} s.\n{self.tail()}")
            time.sleep(POLL_S)

    def wait_ended(self, timeout_s: float) -> int:
        """The exit code of a process that is expected to end by itself."""
        if self._child is None:
            raise ProcessError(f"{self.name} is not started")
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.name} still ran after {timeout_s:.0f} s.\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, for example SIGSTOP to make the server silent without closing its connections."""
        if self._child is None:
            raise ProcessError(f"{self.name} is not started")
        self._child.send_signal(number)

    def stop(self, grace_s: float = 5) -> None:
        """End the process and reap it: SIGTERM, then SIGKILL after grace_s (0: SIGKILL at once)."""
        child, self._child = self._child, None
        if child is None:
            return
        if grace_s and child.poll() is None:
            child.terminate()
            child.send_signal(signal.SIGCONT)  # a process stopped by SIGSTOP would never see the SIGTERM
            with suppress(subprocess.TimeoutExpired):
                child.wait(grace_s)
        child.kill()  # does nothing to a process already reaped
        child.wait()

    def tail(self) -> str:
        """The last lines of the log, under a heading that names the file."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:] if self.log.exists() else []
        return "\n".join([f"--- end of {self.log.name}", *lines])

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop(grace_s=0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port(among: Sequence[int] = PORTS) -> int:
    """A loopback port on which nothing listens now, and that no process gets from here while this one lives."""
    for _ in range(100):
        port = random.choice(among)
        if not _reserve(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise ProcessError(f"no free loopback port found in {min(among)}-{max(among)} after 100 tries")


def _reserve(port: int) -> bool:
    """Between our asking and the server's listening, another suite of this user may ask for the same port.

    Threads ask one at a time: the kernel tells only processes apart.
    """
    with _reserving:
        if port in _reserved:
            return False
        try:
            fcntl.lockf(_reservations(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        except OSError:
            return False
        _reserved.add(port)
        return True


_reserving = threading.Lock()
_reserved: set[int] = set()


@cache
def _reservations() -> int:
    """Descriptor of a file whose byte N is locked by the process that has port N.

    The kernel unlocks all of them when that process ends, or closes any descriptor of this file.
    """
    return os.open(Path(tempfile.gettempdir()) / f"testbed-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections on a port; unless told, on the loopback interface."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _leash(outlived: bool) -> list[str]:
    """A prefix that makes the kernel kill the server when we are killed ourselves and no `with` can end it.

    The kernel ties this to the thread that started the process: the main one, or one that is sure to outlive it.
    """
    setpriv = shutil.which("setpriv")
    lasts = outlived or threading.current_thread() is threading.main_thread()
    return [setpriv, "--pdeathsig", "KILL"] if setpriv and lasts else []
