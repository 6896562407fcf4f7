"""The processes of a node's ranks, and everything that happens to them as one queue of events.

Used by the launcher; torch is not imported. Each source of events but the signals is a thread.
"""

from __future__ import annotations

import ctypes
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import stacks
from .heartbeat import Heartbeats
from .outcome import RankExit
from .stall import Stall, StallRule

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SIGNALS = (*STOP_SIGNALS, stacks.SIGNAL)
"""What the launcher answers."""
_PR_SET_PDEATHSIG = 1  # option of prctl(2)

Event = RankExit | Stall | signal.Signals
Events = queue.SimpleQueue[Event]
"""The only kind of queue that a signal handler may use: its put() is reentrant."""


@dataclass
class RankProcesses:
    """The processes of this node, and the events of these processes and of the launcher."""

    folder: Path
    heartbeats: Heartbeats
    events: Events = field(default_factory=queue.SimpleQueue)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], inherited: int | None) -> None:
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=() if inherited is None else (inherited,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal reaches the launcher only, which forwards it once
        )
        self.processes[rank] = process
        _in_background(self._wait, rank, process)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            process.send_signal(number)  # does nothing if the process has exited

    @property
    def running(self) -> dict[int, subprocess.Popen[bytes]]:
        return {rank: process for rank, process in self.processes.items() if process.poll() is None}

    @property
    def connected(self) -> bool:
        """Whether every rank is in the process group: one that waits for it does not answer a stop signal."""
        return all(progress.connected for progress in self.heartbeats.read())

    def stacks(self) -> dict[int, str]:
        """The stack of each rank, or why it has none."""
        progress = dict(zip(self.processes, self.heartbeats.read(), strict=True))
        answering = {rank: process for rank, process in self.running.items() if progress[rank].activity}
        found = dict.fromkeys(self.processes, "no stack: the process is starting, or has exited\n")
        return found | stacks.collect(self.folder, answering)

    @contextmanager
    def observed(self, floor: float) -> Iterator[None]:
        """While the context lasts, a stall becomes an event; with a floor of 0, none does."""
        ended = threading.Event()
        if floor:
            _in_background(self._observe, StallRule(floor), ended)
        try:
            yield
        finally:
            ended.set()

    def _observe(self, rule: StallRule, ended: threading.Event) -> None:
        before = time.monotonic()
        while not ended.wait(rule.tick):
            now = time.monotonic()
            if _log_is_read() and (found := rule.observe(self.heartbeats.read(), now - before)):
                return self.events.put(found)
            before = now
        return None

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.events.put(RankExit(rank, 128 - code if code < 0 else code, time.time()))


def end_with_launcher() -> None:
    """Without this, a process whose launcher was killed would go on, and a rank would keep its GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_background(work: Callable[..., None], *args: Any) -> None:
    """A thread. It blocks signals: one that another thread receives does not wake the main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=work, args=args, daemon=True).start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _log_is_read() -> bool:
    """Whether standard output and error take more. If not, ranks wait for their reader, and do not hang."""
    try:
        return len(select.select((), (1, 2), (), 0)[1]) == 2
    except OSError:  # one of them is closed
        return True
