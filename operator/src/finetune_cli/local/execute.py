"""Runs a workload from start to end. Called by `finetune run`."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

from finetune_api.resource.status import Status
from finetune_plan.workload import Workload

from . import outcome as outcomes
from .display import Display
from .launches import Launch, free_port, launches
from .outcome import Outcome
from .processes import Events
from .recorder import RunRecorder
from .supervise import SupervisedRun, signals_as_events, started, supervise

STOPPING = "stopping: saving a checkpoint; press Ctrl-C again to stop immediately"
KILLING = "stopping immediately; the same command resumes from the last checkpoint, if there is one"


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, with what the command prints about it."""

    outcome: Outcome
    status: Status
    seconds: float
    log: Path
    """Of the replica that decided the outcome."""


def execute(work: Workload, output: Path, status: Status, display: Display, lock: int) -> FinishedRun:
    """Run the replicas of `work` to their end in the folder `output`. `lock` is the descriptor of its lock."""
    started_at = monotonic()
    recorder = RunRecorder(output, status, display)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder, closing(recorder), closing(display):
        replicas = launches(work, Path(folder), free_port(), os.environ)
        for launch in replicas:
            launch.config.parent.mkdir()
            launch.config.write_text(work.config_json, encoding="utf-8")
        recorder.open(replicas)
        run = _supervise(replicas, recorder, display, lock)
        reports = {each.node: found for each in replicas if (found := outcomes.read_report(each))}
    outcome = outcomes.outcome(run.ended, reports, requests=run.signals)
    recorder.end(outcome)
    return FinishedRun(outcome, recorder.status, monotonic() - started_at, recorder.log(outcome.replica))


def _supervise(replicas: tuple[Launch, ...], recorder: RunRecorder, display: Display, lock: int) -> SupervisedRun:
    events: Events = SimpleQueue()
    with signals_as_events(events), started(replicas, events, inherited=(lock,)) as run:
        supervise(run, events, recorder.line, lambda count: display.message(STOPPING if count == 1 else KILLING))
    return run
