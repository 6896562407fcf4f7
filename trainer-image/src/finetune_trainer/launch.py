"""The launcher of one node: starts one process per rank, forwards signals, and keeps the cause of a failure.

Called by node.py. It does not import torch. (torchrun turns every exit code into 1 and drops the rank's report.)
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_api.runtime.protocol import STALL_SECONDS
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import Mesh

from . import records, stacks, stall
from .config import NodeInfo
from .handoff import FOLDER_ENV, STORE_ENV, read_rank_report
from .heartbeat import Heartbeats
from .outcome import NodeOutcome, RankExit, node_report
from .rank_processes import SIGNALS, Event, Events, RankProcesses
from .stall import Stall, StalledRank

GRACE = 15.0
"""Seconds that the other ranks have, after the first failure, to fail and write their reports."""
KILL_SECONDS = 10.0
"""Seconds after which a killed rank is given up: one that waits in the kernel for a volume may never end."""
WORKER = (sys.executable, "-m", "finetune_trainer.worker")


@dataclass(frozen=True)
class Rendezvous:
    """Address of the store, on which rank 0 listens."""

    addr: str
    port: int
    store: int | None = None
    """Descriptor of the listening socket at that port, which rank 0 inherits; None if rank 0 opens its own."""


def launch(
    mesh: Mesh,
    node: NodeInfo,
    folder: Path,
    *,
    worker: Sequence[str] = WORKER,
    grace: float = GRACE,
    stall_seconds: float = STALL_SECONDS,
) -> FinalReport:
    """Run the ranks of this node until all have exited. `folder` is the handoff folder.

    Returns the ranks' report, or that of the earliest failure. Ranks that make no progress for `stall_seconds`, or
    longer where the job is slow (stall.py), are killed; 0: never.
    """
    ranks = RankProcesses(folder, Heartbeats(folder, mesh.processes_per_node))
    with _forwarded(ranks.events), _rendezvous(node) as rendezvous, ranks.observed(stall_seconds):
        try:
            _start(ranks, mesh, node, folder, rendezvous, worker)
            outcome = wait_for_ranks(ranks, grace)
        finally:
            ranks.send(signal.SIGKILL)
    if outcome.stall is not None:
        return stall.report(outcome.stall, node.rank, outcome.stalled)
    reports = {rank: report for rank in ranks.processes if (report := read_rank_report(folder, rank))}
    return node_report(outcome, reports, node.rank)


def wait_for_ranks(ranks: RankProcesses, grace: float, kill_seconds: float = KILL_SECONDS) -> NodeOutcome:
    """Wait for all ranks. After the first failure the others have `grace` seconds.

    A second stop signal, or a stall, kills them; so does the first one while any of them is not in the process
    group: there is nothing to save then. Ranks that do not exit within `kill_seconds` after that are given up. SIGHUP
    never counts as the second: when `finetune run` is killed, the kernel sends one for each thread that it had.
    """
    outcome = NodeOutcome()
    deadline: float | None = None
    while len(outcome.exits) < len(ranks.processes):
        event = _next(ranks.events, deadline)
        if isinstance(event, RankExit):
            outcome.exits.append(event)
            if event.code and deadline is None:
                deadline = time.monotonic() + grace
        elif event is stacks.SIGNAL:
            records.print_lines(stacks.log_lines(ranks.stacks()))
        elif event is signal.SIGHUP and outcome.stop_signals:
            continue
        elif isinstance(event, signal.Signals) and not outcome.stop_signals and ranks.connected:
            outcome.stop_signals = 1
            ranks.send(signal.SIGTERM)
        elif event is None and outcome.killed:
            break
        else:
            _kill(ranks, outcome, event)
            deadline = time.monotonic() + kill_seconds
    return outcome


def _kill(ranks: RankProcesses, outcome: NodeOutcome, event: Stall | signal.Signals | None) -> None:
    outcome.stop_signals += isinstance(event, signal.Signals) and not outcome.killed
    found: Mapping[int, str] = {}
    if isinstance(event, Stall) and ranks.running and not (outcome.failed or outcome.killed):
        states = {rank: stacks.state(process) for rank, process in ranks.running.items()}
        found = ranks.stacks()
        outcome.stall = event
        outcome.stalled = {rank: StalledRank(states[rank], stacks.innermost(found[rank])) for rank in states}
    outcome.killed_at = min(outcome.killed_at, time.time())
    ranks.send(signal.SIGKILL)
    records.print_lines(stacks.log_lines(found))


def _next(events: Events, deadline: float | None) -> Event | None:
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
    """Signals to the launcher become events. Afterwards they are ignored: how the ranks ended stands."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        events.put(signal.Signals(number))

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
