"""A node with scripted ranks: `python -m trainer.launcher_node ROLES GRACE FOLDER STALL`.

ROLES is JSON: the role of each rank, one of those below. The launcher is the real one; it prints the report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Cause, FinalReport
from finetune_api.runtime.run_config import Mesh
from finetune_trainer import launch, outcome
from finetune_trainer.config import NodeInfo
from finetune_trainer.handoff import FOLDER_ENV, STORE_ENV, write_rank_report
from finetune_trainer.heartbeat import Heartbeat, join

COMMAND = (sys.executable, "-m", "trainer.launcher_node")


def main() -> int:
    roles, grace, folder, stall = sys.argv[1:]
    mesh = Mesh(
        nodes=1,
        processes_per_node=len(json.loads(roles)),
        data_parallel=len(json.loads(roles)),
        tensor_parallel=1,
        pipeline_parallel=1,
    )
    report = launch.launch(
        mesh, NodeInfo(0, 1), Path(folder), worker=(*COMMAND, roles), grace=float(grace), stall_seconds=float(stall)
    )
    sys.stdout.write(report.line() + "\n")
    return report.exit_code


def play(role: str) -> NoReturn:
    name, _, code = role.partition(" ")
    {
        "exit": lambda: sys.exit(int(code)),
        "fail": lambda: end(failed(int(code))),
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "hang": hang,
        "wait": wait,
        "stop": stop,
        "work": work,
        "print": print_much,
        "environment": report_environment,
    }[name]()
    raise AssertionError(role)


def failed(code: int) -> FinalReport:
    rank = int(os.environ["RANK"])
    message = f"rank {rank} failed"
    return outcome.failure(code, message, Cause(rank=rank, node=0, time=time.time(), error=message))


def end(report: FinalReport) -> NoReturn:
    write_rank_report(Path(os.environ[FOLDER_ENV]), int(os.environ["RANK"]), report)
    sys.exit(report.exit_code)


def connected() -> Heartbeat:
    """Like a rank that has found its peers."""
    heartbeat = join(Path(os.environ[FOLDER_ENV]), int(os.environ["LOCAL_RANK"]))
    heartbeat.connected()
    return heartbeat


def ready() -> None:
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def hang() -> None:
    """Like a rank in a collective with a lost peer: it does not respond."""
    connected()
    wait()


def wait() -> None:
    """Like a rank that waits for the ranks of a node that has not started: it does not respond."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready()
    while True:
        signal.pause()


def stop() -> None:
    """Like a rank that stops after its step when asked to."""
    connected()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    ready()
    signal.sigwait({signal.SIGTERM})
    end(FinalReport(time=time.time(), exit_code=Exit.STOPPED, reason="Stopped", message="after 3 steps", step=3))


def work() -> None:
    """Like a rank that does one step after the other, until it is asked to stop."""
    heartbeat = connected()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    heartbeat.done(1)
    ready()
    while not signal.sigtimedwait({signal.SIGTERM}, 0.01):
        heartbeat.done(2)
    end(FinalReport(time=time.time(), exit_code=Exit.STOPPED, reason="Stopped", message="", step=2))


def print_much() -> None:
    """Like a rank that writes more lines than a pipe holds."""
    connected().done(1)
    sys.stdout.write("ready\n" + "record\n" * 100_000)
    sys.stdout.flush()
    end(FinalReport(time=time.time(), exit_code=Exit.OK, reason="Succeeded", message="", step=1))


def report_environment() -> None:
    """Report the environment of the rank as the message."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    variables = {name: os.environ[name] for name in names} | {"store": os.environ.get(STORE_ENV, "")}
    end(FinalReport(time=time.time(), exit_code=0, reason="Succeeded", message=json.dumps(variables), step=0))


if __name__ == "__main__":
    if "RANK" in os.environ:
        play(json.loads(sys.argv[1])[int(os.environ["RANK"])])
    else:
        sys.exit(main())
