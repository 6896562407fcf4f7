"""The stacks of ranks, on a signal: each rank writes its own into the handoff folder, the launcher reads them.

faulthandler answers the signal without the interpreter, so also a rank that waits in C code or holds the GIL answers.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

from .stall import STATES

SIGNAL = signal.SIGUSR1
PATIENCE = 5.0
"""Seconds that ranks have to write their stacks."""
_FRAME = re.compile(r'File "(.+)", line (\d+) in (.+)')
_POLL = 0.2
"""Seconds without a change after which a stack is complete."""


def answer(folder: Path, rank: int) -> None:
    """From now on this rank answers the signal."""
    # Appending, so that the launcher may empty the file. It stays open: faulthandler uses its descriptor.
    faulthandler.register(SIGNAL, _path(folder, rank).open("a"), all_threads=True)


def collect(folder: Path, ranks: Mapping[int, subprocess.Popen[bytes]]) -> dict[int, str]:
    """The stacks of running `ranks`, all of which answer; where one does not, the reason why."""
    paths = {rank: _path(folder, rank) for rank in ranks}
    for rank, process in ranks.items():
        os.truncate(paths[rank], 0)
        process.send_signal(SIGNAL)
    sizes: dict[int, int] = {}
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        time.sleep(_POLL)
        before, sizes = sizes, {rank: path.stat().st_size for rank, path in paths.items()}
        if all(sizes.values()) and sizes == before:
            break
    return {rank: path.read_text() or _missing(ranks[rank]) for rank, path in paths.items()}


def state(process: subprocess.Popen[bytes]) -> str:
    """The state of a process as in proc(5); empty if the system has no /proc, or the process has exited."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def log_lines(found: Mapping[int, str]) -> str:
    """One rank after the other, each line with its rank."""
    return "".join(textwrap.indent(text, f"rank {rank}: ", lambda _: True) for rank, text in found.items())


def innermost(stack: str) -> str:
    """Where the rank is: its main thread, which faulthandler lists last, or the thread whose batch that waits for.

    Empty without a stack.
    """
    *others, main = [_FRAME.findall(part) for part in stack.split("(most recent call first)")[1:]] or [[]]
    collating = [frames for frames in others if _calls(frames, "work")] if _calls(main, "collated") else []
    return next((f"{name} ({Path(file).name}:{line})" for file, line, name in [*collating, main][0]), "")


def _calls(frames: list[tuple[str, str, str]], function: str) -> bool:
    """Whether a thread is in this function of batches.py."""
    return any((Path(file).name, name.rpartition(".")[2]) == ("batches.py", function) for file, _, name in frames)


def _missing(process: subprocess.Popen[bytes]) -> str:
    return f"no stack: the process {STATES.get(state(process), f'did not answer within {PATIENCE:.0f} s')}\n"


def _path(folder: Path, rank: int) -> Path:
    return folder / f"stacks-{rank:05d}"
