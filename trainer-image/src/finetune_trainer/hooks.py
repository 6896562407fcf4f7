"""What happens after an optimizer step, besides the next one: a small class for each concern.

job.py calls them in this order: progress, evaluation, checkpoints, stopping. A checkpoint thus knows the
evaluation of its step, and a stop finds the checkpoint of its step already there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.runtime.report import CheckpointRecord, EvaluationRecord, ProgressRecord
from finetune_api.runtime.run_config import Checkpointing, Validation

from . import checkpoint, evaluate
from .batches import Order
from .files import Files
from .history import History
from .loop import Done, Run
from .records import Records
from .rows import Rows
from .stop import Stop


def due(step: int, every: int, order: Order) -> bool:
    """Whether something done every so many steps (0: at the end of each epoch), and at the end, is due."""
    regular = step % every == 0 if every else order.ends_epoch(step)
    return regular or step == order.total_steps


@dataclass
class Progress:
    """A record every so many steps, and of the first and the last one."""

    run: Run
    records: Records
    history: History
    _since: list[Done] = field(default_factory=list)
    _steps: int = 0
    _seconds: float = 0.0

    def __call__(self, done: Done) -> None:
        self.history.train_loss = done.loss
        self._since.append(done)
        self._steps += 1
        self._seconds += done.seconds
        if self._steps == 1 or due(done.step, self.run.config.log_every_steps, self.run.order):
            self.records(self._record(done))
            self._since.clear()

    def _record(self, done: Done) -> ProgressRecord:
        order = self.run.order
        seconds = sum(step.seconds for step in self._since)
        return ProgressRecord(
            time=time.time(),
            step=done.step,
            total_steps=order.total_steps,
            epoch=done.step / order.steps_per_epoch,
            loss=done.loss,
            learning_rate=done.learning_rate,
            grad_norm=done.grad_norm,
            tokens_per_second=sum(step.tokens for step in self._since) / seconds,
            eta_seconds=(order.total_steps - done.step) * self._seconds / self._steps,
        )


@dataclass
class Evaluation:
    """Validation loss before the first step and whenever due."""

    run: Run
    settings: Validation
    rows: Rows
    records: Records
    history: History
    stop: Stop

    def __call__(self, done: Done) -> None:
        self.at(done.step)

    def at(self, step: int) -> None:
        """Evaluate after `step` steps if that is due and not done yet: a stop may have cut it short."""
        wanted = step == 0 or due(step, self.settings.every_steps, self.run.order)
        if wanted and step != self.history.evaluated_step:
            self._evaluate(step)

    def _evaluate(self, step: int) -> None:
        run = self.run
        loss = evaluate.mean_nll(run.engine, self.rows, run.layout, run.place, self.stop)
        best = self.history.evaluated(step, loss)
        self.records(EvaluationRecord(time=time.time(), step=step, loss=loss, rows=len(self.rows), best=best))


@dataclass
class Checkpoints:
    """Saved when due, when the best step so far has to be kept, and by job.py before the run stops."""

    run: Run
    output: Path
    settings: Checkpointing
    keep_best: bool
    records: Records
    history: History
    files: Files
    _saved: int = -1

    def __call__(self, done: Done) -> None:
        best = self.keep_best and self.history.best_step == done.step
        if best or due(done.step, self.settings.every_steps, self.run.order):
            self.save(done.step)

    def save(self, step: int) -> None:
        if step == self._saved:
            return
        began = time.monotonic()
        best = self.history.best_step
        checkpoint.save(
            self.output,
            step,
            self.run.engine.state(),
            self.history.model_dump(),
            keep=self.settings.keep,
            protect={best} if self.keep_best and best is not None else set(),
            files=self.files,
        )
        self._saved = step
        self.records(CheckpointRecord(time=time.time(), step=step, seconds=time.monotonic() - began))


@dataclass
class Stopping:
    """Ends the run after this step if any rank was asked to stop. After the last one, finishing is as quick."""

    run: Run
    stop: Stop

    def __call__(self, done: Done) -> None:
        if done.step < self.run.order.total_steps:
            self.stop.check(self.run.place.device)
