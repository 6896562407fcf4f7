"""The launcher of one node: one process per rank, signals passed on, and the cause of a failure kept.

Called by __main__. It knows no torch. (torchrun would turn every exit code into 1 and lose what a rank said.)
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import Mesh

from .config import Node
from .handoff import FOLDER_ENV, STORE_ENV, read_ending
from .verdict import Exited, Watched, judge

GRACE = 15.0
"""Seconds that the other ranks have, after one failed, to fail themselves and say why."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKER = (sys.executable, "-m", "finetune_trainer.worker")

Events = queue.SimpleQueue[Exited | signal.Signals]
"""The one kind of queue that a signal handler may put into."""


@dataclass(frozen=True)
class Meeting:
    """Where the ranks find each other: rank 0 listens there."""

    addr: str
    port: int
    store: int | None = None
    """Descriptor of the open socket at that port, for rank 0 to take over; None if it opens its own."""


def launch(mesh: Mesh, node: Node, folder: Path, worker: Sequence[str] = WORKER, grace: float = GRACE) -> FinalReport:
    """Run the ranks of this node to their end. `folder` is where they find their work and leave their endings.

    The report is theirs, or that of the failure that came first.
    """
    ranks = Ranks()
    with _forwarded(ranks.events), _meeting_place(node) as meeting:
        try:
            _start(ranks, mesh, node, folder, meeting, worker)
            watched = _watch(ranks, grace)
        finally:
            ranks.send(signal.SIGKILL)
    endings = {rank: ending for rank in ranks.processes if (ending := read_ending(folder, rank))}
    return judge(watched, endings, node.rank)


@dataclass
class Ranks:
    """The processes of this node, and what happens to them and to the launcher."""

    events: Events = field(default_factory=queue.SimpleQueue)
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, rank: int, command: Sequence[str], environment: Mapping[str, str], inherited: int | None) -> None:
        process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=() if inherited is None else (inherited,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal reaches the launcher, which passes it on once
        )
        self.processes[rank] = process
        # A signal that another thread catches does not wake the main one, so these inherit that they catch none.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, args=(rank, process), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            process.send_signal(number)  # does nothing to one that is over

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.events.put(Exited(rank, 128 - code if code < 0 else code, time.time()))


def _watch(ranks: Ranks, grace: float) -> Watched:
    """Wait for all ranks. The first failure gives the others `grace` seconds; a second signal gives them nothing."""
    watched = Watched()
    deadline: float | None = None
    while len(watched.exits) < len(ranks.processes):
        event = _next(ranks.events, deadline)
        if isinstance(event, Exited):
            watched.exits.append(event)
            if event.code and deadline is None:
                deadline = time.monotonic() + grace
        elif event is not None and not watched.asked:
            watched.asked = 1
            ranks.send(signal.SIGTERM)
        else:
            watched.asked += event is not None
            watched.ended = min(watched.ended, time.time())
            deadline = None
            ranks.send(signal.SIGKILL)
    return watched


def _next(events: Events, deadline: float | None) -> Exited | signal.Signals | None:
    """The next event, or None once the deadline (of time.monotonic) is over."""
    try:
        return events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


def _start(ranks: Ranks, mesh: Mesh, node: Node, folder: Path, meeting: Meeting, worker: Sequence[str]) -> None:
    shared = _environment(mesh, folder, meeting)
    for local_rank in range(mesh.processes_per_node):
        rank = node.rank * mesh.processes_per_node + local_rank
        own = {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
        takes_over = meeting.store if rank == 0 else None
        if takes_over is not None:
            own[STORE_ENV] = str(takes_over)
        ranks.start(rank, worker, shared | own, takes_over)


def _environment(mesh: Mesh, folder: Path, meeting: Meeting) -> dict[str, str]:
    """What every rank of the node is told. A number of threads that was set outside stays."""
    threads = max(1, len(os.sched_getaffinity(0)) // mesh.processes_per_node)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "WORLD_SIZE": str(mesh.world_size),
        "MASTER_ADDR": meeting.addr,
        "MASTER_PORT": str(meeting.port),
        "HF_HUB_OFFLINE": "1",  # all that a rank needs lies on this node by now
        FOLDER_ENV: str(folder),
    }


@contextmanager
def _meeting_place(node: Node) -> Iterator[Meeting]:
    """The address that the cluster gave. A node alone takes any free port and keeps it until rank 0 has it."""
    if node.count > 1:
        yield Meeting(node.master_addr, node.master_port)
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Meeting("127.0.0.1", listening.getsockname()[1], listening.fileno())


@contextmanager
def _forwarded(events: Events) -> Iterator[None]:
    """Signals to the launcher become events."""

    def note(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
