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
_THREADS = (("batches.py", "collated", "work"), ("background.py", "wait", "_save"))
"""A file, the function in which the main thread waits, and the one in which the thread works that it waits for."""
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
    """The state of a process as in proc(5): the first of its threads' that STATES names, else its main thread's.

    Empty if the system has no /proc, or the process has exited.
    """
    try:
        tasks = sorted(Path(f"/proc/{process.pid}/task").iterdir(), key=lambda task: int(task.name))
        states = [(task / "stat").read_text().rpartition(") ")[2][:1] for task in tasks]
    except OSError:
        return ""
    return next((each for each in states if each in STATES), states[0] if states else "")


def log_lines(found: Mapping[int, str]) -> str:
    """One rank after the other, each line with its rank."""
    return "".join(textwrap.indent(text, f"rank {rank}: ", lambda _: True) for rank, text in found.items())


def innermost(stack: str) -> str:
    """Where the rank is: its main thread, which faulthandler lists last, or the thread that this waits for.

    Empty without a stack.
    """
    *others, main = [_FRAME.findall(part) for part in stack.split("(most recent call first)")[1:]] or [[]]
    awaited = [
        frames
        for file, waits, works in _THREADS
        for frames in others
        if _calls(main, file, waits) and _calls(frames, file, works)
    ]
    return next((f"{name} ({Path(file).name}:{line})" for file, line, name in [*awaited, main][0]), "")


def _calls(frames: list[tuple[str, str, str]], file: str, function: str) -> bool:
    """Whether a thread is in this function of ours."""
    return any((Path(path).name, name.rpartition(".")[2]) == (file, function) for path, _, name in frames)


def _missing(process: subprocess.Popen[bytes]) -> str:
    return f"no stack: the process {STATES.get(state(process), f'did not answer within {PATIENCE:.0f} s')}\n"


def _path(folder: Path, rank: int) -> Path:
    return folder / f"stacks-{rank:05d}"
