"""The launcher of one node: starts one process per rank, forwards signals, and keeps the cause of a failure.

Called by __main__. It does not import torch. (torchrun turns every exit code into 1 and drops the rank's report.)
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

from .config import NodeInfo
from .handoff import FOLDER_ENV, STORE_ENV, read_rank_report
from .outcome import NodeOutcome, RankExit, node_report

GRACE = 15.0
"""Seconds that the other ranks have, after the first failure, to fail and write their reports."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKER = (sys.executable, "-m", "finetune_trainer.worker")

Events = queue.SimpleQueue[RankExit | signal.Signals]
"""The only kind of queue that a signal handler may use: its put() is reentrant."""


@dataclass(frozen=True)
class Rendezvous:
    """Address of the store, on which rank 0 listens."""

    addr: str
    port: int
    store: int | None = None
    """Descriptor of the listening socket at that port, which rank 0 inherits; None if rank 0 opens its own."""


def launch(
    mesh: Mesh, node: NodeInfo, folder: Path, worker: Sequence[str] = WORKER, grace: float = GRACE
) -> FinalReport:
    """Run the ranks of this node until all have exited. `folder` is the handoff folder.

    Returns the ranks' report, or that of the earliest failure.
    """
    ranks = RankProcesses()
    with _forwarded(ranks.events), _rendezvous(node) as rendezvous:
        try:
            _start(ranks, mesh, node, folder, rendezvous, worker)
            outcome = _wait_for_ranks(ranks, grace)
        finally:
            ranks.send(signal.SIGKILL)
    reports = {rank: report for rank in ranks.processes if (report := read_rank_report(folder, rank))}
    return node_report(outcome, reports, node.rank)


@dataclass
class RankProcesses:
    """The processes of this node, and the events of these processes and of the launcher."""

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
        # A signal that another thread receives does not wake the main thread, so these threads block all of them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, args=(rank, process), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes.values():
            process.send_signal(number)  # does nothing if the process has exited

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        self.events.put(RankExit(rank, 128 - code if code < 0 else code, time.time()))


def _wait_for_ranks(ranks: RankProcesses, grace: float) -> NodeOutcome:
    """Wait for all ranks. After the first failure the others have `grace` seconds; a second signal kills them."""
    outcome = NodeOutcome()
    deadline: float | None = None
    while len(outcome.exits) < len(ranks.processes):
        event = _next(ranks.events, deadline)
        if isinstance(event, RankExit):
            outcome.exits.append(event)
            if event.code and deadline is None:
                deadline = time.monotonic() + grace
        elif event is not None and not outcome.stop_signals:
            outcome.stop_signals = 1
            ranks.send(signal.SIGTERM)
        else:
            outcome.stop_signals += event is not None
            outcome.killed_at = min(outcome.killed_at, time.time())
            deadline = None
            ranks.send(signal.SIGKILL)
    return outcome


def _next(events: Events, deadline: float | None) -> RankExit | signal.Signals | None:
    """The next event, or None after the deadline (in time.monotonic)."""
    try:
        return events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        return None


def _start(
    ranks: RankProcesses, mesh: Mesh, node: NodeInfo, folder: Path, rendezvous: Rendezvous, worker: Sequence[str]
) -> None:
    shared = _environment(mesh, folder, rendezvous)
    for local_rank in range(mesh.processes_per_node):
        rank = node.rank * mesh.processes_per_node + local_rank
        own = {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
        inherited = rendezvous.store if rank == 0 else None
        if inherited is not None:
            own[STORE_ENV] = str(inherited)
        ranks.start(rank, worker, shared | own, inherited)


def _environment(mesh: Mesh, folder: Path, rendezvous: Rendezvous) -> dict[str, str]:
    """The environment of every rank. OMP_NUM_THREADS is kept if it is set already."""
    threads = max(1, len(os.sched_getaffinity(0)) // mesh.processes_per_node)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "WORLD_SIZE": str(mesh.world_size),
        "MASTER_ADDR": rendezvous.addr,
        "MASTER_PORT": str(rendezvous.port),
        "HF_HUB_OFFLINE": "1",  # the launcher has downloaded what the ranks need
        FOLDER_ENV: str(folder),
    }


@contextmanager
def _rendezvous(node: NodeInfo) -> Iterator[Rendezvous]:
    """The address given by the cluster. A single node takes any free port and holds it until rank 0 inherits it."""
    if node.count > 1:
        yield Rendezvous(node.master_addr, node.master_port)
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Rendezvous("127.0.0.1", listening.getsockname()[1], listening.fileno())


@contextmanager
def _forwarded(events: Events) -> Iterator[None]:
    """Signals to the launcher become events."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    before = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
