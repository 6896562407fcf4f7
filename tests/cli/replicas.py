"""Replicas that are small scripts instead of trainers, and a list of the processes that they leave behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from finetune_api.runtime.protocol import CONFIG_ENV
from finetune_cli.local.launches import Launch
from finetune_cli.local.processes import Events, OutputLine
from finetune_cli.local.supervise import SupervisedRun, started, supervise


def launch(folder: Path, node: int, script: str = "") -> Launch:
    """A replica that runs a Python script. Its name is that of a pod."""
    name = f"job-1-worker-{node}"
    config = folder / name / "run.json"
    env = dict(os.environ) | {CONFIG_ENV: str(config)}
    return Launch(name, node, (sys.executable, "-u", "-c", script), env, config, folder / name / "report.json")


@dataclass
class Seen:
    """What a supervised run has shown."""

    run: SupervisedRun
    lines: list[tuple[int, str]] = field(default_factory=list)
    asks: list[int] = field(default_factory=list)

    @property
    def codes(self) -> dict[int, int]:
        return {each.launch.node: each.code for each in self.run.ended}


def supervised(
    folder: Path, *scripts: str, grace: float = 20.0, on_line: Callable[[str, Events], None] = lambda *_: None
) -> Seen:
    """Run the scripts as replicas 0, 1, ... to their end. `on_line` may put events of its own."""
    events: Events = SimpleQueue()
    launches = [launch(folder, node, script) for node, script in enumerate(scripts)]
    with started(launches, events, grace) as run:
        seen = Seen(run)

        def on_line_read(line: OutputLine) -> None:
            seen.lines.append((line.launch.node, line.text))
            on_line(line.text, events)

        supervise(run, events, on_line_read, seen.asks.append)
    return seen


def alive(mark: str | Path) -> list[int]:
    """Processes that have the text in their environment, other than this one."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(mark).encode() in environ.read_bytes() and int(environ.parent.name) != os.getpid():
                found.append(int(environ.parent.name))
    return found
