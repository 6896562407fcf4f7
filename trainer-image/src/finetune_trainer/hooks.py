"""What happens after an optimizer step: one small class per concern.

trainer.py calls them in this order: progress, evaluation, checkpoints, stopping. So a checkpoint includes the
evaluation of its step, and a stop finds the checkpoint of its step already saved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import lcm
from pathlib import Path

from finetune_api.runtime.report import EvaluationRecord, ProgressRecord
from finetune_api.runtime.run_config import Checkpointing, Validation

from . import checkpoint, evaluate, snapshot
from .background import BackgroundSave
from .files import Files
from .history import History
from .loop import StepResult, TrainState
from .records import RecordWriter
from .rows import Rows
from .sampler import Sampler
from .stop import Stop, StopRequested


def due(step: int, every: int, sampler: Sampler) -> bool:
    """Whether an action is due that runs every `every` steps (0: at the end of each epoch) and after the last."""
    regular = step % every == 0 if every else sampler.ends_epoch(step)
    return regular or step == sampler.total_steps


def count_due(after: int, intervals: Iterable[int], sampler: Sampler) -> int:
    """How many steps later than `after` are due, each for at least one of `intervals`."""
    every, total = {each or sampler.steps_per_epoch for each in intervals}, sampler.total_steps
    count = int(after < total and all(total % each for each in every))
    for size in range(1, len(every) + 1):  # the steps of some, less those of two of them, and so on
        for common in (lcm(*chosen) for chosen in combinations(every, size)):
            count += (-1) ** (size + 1) * (total // common - after // common)
    return count


@dataclass
class Progress:
    """A record every `log_every_steps` steps, and after the first and the last step."""

    train_state: TrainState
    write_record: RecordWriter
    history: History
    _since: list[StepResult] = field(default_factory=list)
    _steps: int = 0
    _seconds: float = 0.0

    def __call__(self, result: StepResult) -> None:
        self.history.train_loss, self.history.skipped_steps = result.loss, result.skipped_steps
        self._since.append(result)
        self._steps += 1
        self._seconds += result.seconds
        if self._steps == 1 or due(result.step, self.train_state.config.log_every_steps, self.train_state.sampler):
            self.write_record(self._record(result))
            self._since.clear()

    def _record(self, result: StepResult) -> ProgressRecord:
        sampler = self.train_state.sampler
        seconds = sum(step.seconds for step in self._since)
        return ProgressRecord(
            time=time.time(),
            step=result.step,
            total_steps=sampler.total_steps,
            epoch=result.step / sampler.steps_per_epoch,
            loss=result.loss,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens_per_second=sum(step.tokens for step in self._since) / seconds,
            eta_seconds=(sampler.total_steps - result.step) * self._seconds / self._steps,
            loss_scale=result.loss_scale,
            skipped_steps=result.skipped_steps,
        )


@dataclass
class Evaluation:
    """Validation loss before the first step and whenever due."""

    train_state: TrainState
    settings: Validation
    rows: Rows
    write_record: RecordWriter
    history: History
    stop: Stop

    def __call__(self, result: StepResult) -> None:
        self.at(result.step)

    def at(self, step: int) -> None:
        """Evaluate after `step` steps if that is due and not done yet: a stop may have interrupted it."""
        wanted = step == 0 or due(step, self.settings.every_steps, self.train_state.sampler)
        if wanted and step != self.history.evaluated_step:
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        loss = evaluate.mean_nll(self.train_state, self.rows, self.stop, step)
        best = self.history.record_evaluation(step, loss)
        self.write_record(EvaluationRecord(time=time.time(), step=step, loss=loss, rows=len(self.rows), best=best))


@dataclass
class Checkpoints:
    """Saves when due, when the best step so far must be kept, and when trainer.py asks before the run stops.

    Training waits for the copy of its state, and for the save before, if that is still under way. The rest happens
    on a thread.
    """

    train_state: TrainState
    output: Path
    settings: Checkpointing
    keep_best: bool
    write_record: RecordWriter
    history: History
    files: Files
    saving: BackgroundSave
    saved: int = -1
    """The step whose save has begun, or from which the run has resumed."""

    def __call__(self, result: StepResult) -> None:
        if self.saving.succeeded:
            self.wait()  # for nothing; a failure is raised where all ranks wait
        best = self.keep_best and self.history.best_step == result.step
        if best or due(result.step, self.settings.every_steps, self.train_state.sampler):
            self.begin(result.step)

    def begin(self, step: int) -> None:
        """Save this step in the background, unless that was begun before."""
        if step == self.saved:
            return
        self.wait()
        began = time.monotonic()
        best = self.history.best_step
        with self.train_state.heartbeat.saving():
            engine = self.train_state.engine
            taken = snapshot.take(engine.state(), self.history.model_dump(), copy=not engine.state_is_a_copy)
        work = partial(
            checkpoint.save,
            self.output,
            step,
            taken,
            keep=self.settings.keep,
            protect={best} if self.keep_best and best is not None else set(),
            files=self.files,
        )
        self.saving.begin(step, work, time.monotonic() - began)
        self.saved = step

    def save(self, step: int) -> None:
        """Save this step, unless it is saved, and wait for it."""
        self.begin(step)
        self.wait()

    def wait(self) -> None:
        """Return when no save is under way. Collective. Raises what the save has raised."""
        with self.train_state.heartbeat.saving():
            record = self.saving.wait()
        if record is not None:
            self.write_record(record)


@dataclass
class Stopping:
    """Ends the run after this step if any rank was asked to stop. After the last step, the run finishes instead."""

    sampler: Sampler

    def __call__(self, result: StepResult) -> None:
        if result.stop and result.step < self.sampler.total_steps:
            raise StopRequested
