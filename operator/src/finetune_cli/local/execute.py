"""A planned run, from its first process to its last word. Called by `finetune run`."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

from finetune_api.resource.status import Status
from finetune_api.validation.problem import Problem
from finetune_cli.errors import Refused
from finetune_plan.workload import Workload

from . import cause
from .cause import Ending
from .display import Display
from .launches import Launch, free_port, launches
from .processes import Events
from .supervise import Run, signals_as_events, started, supervise
from .watch import Watch

STOPPING = "stopping: a checkpoint is being saved; press Ctrl-C again to end at once"
KILLING = "ending at once; the same command continues from the last checkpoint"


@dataclass(frozen=True)
class Outcome:
    """How a run ended, for whoever says it to people."""

    ending: Ending
    status: Status
    seconds: float
    log: Path
    """Of the replica that decided."""


def execute(work: Workload, output: Path, status: Status, display: Display) -> Outcome:
    """Run the replicas of `work` to their end. Raises Refused if the output folder cannot be made."""
    begun = monotonic()
    watch = Watch(_made(output), status, display)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder, closing(watch), closing(display):
        replicas = launches(work, Path(folder), free_port(), os.environ)
        _write_configs(replicas, work.config_json)
        watch.open(replicas)
        run = _supervised(replicas, watch, display)
        reports = {each.node: found for each in replicas if (found := cause.read_report(each))}
    ending = cause.ending(run.ended, reports, stopped=run.asks == 1)
    watch.end(ending)
    return Outcome(ending, watch.status, monotonic() - begun, watch.log(ending.replica))


def _supervised(replicas: tuple[Launch, ...], watch: Watch, display: Display) -> Run:
    events: Events = SimpleQueue()
    with signals_as_events(events), started(replicas, events) as run:
        supervise(run, events, watch.line, lambda asks: display.say(STOPPING if asks == 1 else KILLING))
    return run


def _write_configs(replicas: tuple[Launch, ...], text: str) -> None:
    for launch in replicas:
        launch.config.parent.mkdir()
        launch.config.write_text(text, encoding="utf-8")


def _made(output: Path) -> Path:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {output} cannot be made: {error.strerror}."
        remedy = "Give --output with another folder."
        raise Refused([Problem("spec.output.uri", "OutputRefused", message, remedy)]) from None
    return output
