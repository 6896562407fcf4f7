"""The story of one run on one rank: whose folder is it, load, continue where it stopped, train, publish.

Called by worker.py with the process group up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.protocol import REPORT, RESULT
from finetune_api.runtime.report import FinalReport, ResumeRecord
from finetune_api.runtime.run_config import RunConfig

from . import adapters, checkpoint, engines, environment, export, identity, loop, model, result
from .agreement import first_rank
from .batches import Layout, Order
from .environment import Place
from .files import DISK, Files
from .handoff import TRAIN, VALIDATION, Handoff, write_digest
from .history import History
from .hooks import Checkpoints, Evaluation, Progress, Stopping
from .loop import Done, Hook, Run
from .records import Records
from .rows import Rows
from .stop import Stop, StopRequested


@dataclass
class Job:
    """One run, from the claim of its output folder to its report."""

    handoff: Handoff
    folder: Path
    """Where the launcher has put the rows."""
    place: Place
    stop: Stop
    files: Files = DISK
    """What saves do to the disk goes through here; a test puts failures in."""
    step: int = 0
    """Optimizer steps done; the report of a failure names it."""

    def run(self) -> FinalReport:
        """Raises a RunError, or whatever else went wrong."""
        digest = self._claim()
        marker = result.finished(self._output, digest)
        if marker is not None:
            return first_rank(lambda: _again(self._output, digest, marker.step))
        for dataset in self.handoff.datasets:
            self._records(dataset)
        base = self._load()
        run = self._assemble(base)
        history = self._resume(run)
        saves = self._checkpoints(run, history)
        try:
            loop.fit(run, self.step, self._hooks(run, history, saves))
        except StopRequested:
            saves.save(self.step)
            return self._report(Exit.STOPPED, digest, history)
        return self._publish(run, base, digest, history)

    @property
    def _config(self) -> RunConfig:
        return self.handoff.config

    @property
    def _output(self) -> Path:
        return Path(self._config.output)

    @property
    def _keep_best(self) -> bool:
        return self._config.validation is not None and self._config.validation.keep_best

    def _claim(self) -> str:
        found = first_rank(lambda: identity.fingerprints(self.handoff.model_folder, self.handoff.data_file))
        digest = identity.claim(self._output, self._config, found, rows_per_step(self._config))
        if self.place.local_rank == 0:
            write_digest(self.folder, digest)
        return digest

    def _load(self) -> PreTrainedModel | PeftModel:
        environment.seed(self._config.seed)
        base = model.load(self.handoff.model_folder, self._config)
        adapted = base if self._config.lora is None else adapters.attach(base, self._config.lora)
        environment.seed(self._config.seed, self.place.rank)
        return adapted

    def _assemble(self, base: PreTrainedModel | PeftModel) -> Run:
        rows = Rows.load(self.folder / TRAIN)
        return Run(
            config=self._config,
            place=self.place,
            engine=engines.build(base, self._config, self.place),
            rows=rows,
            order=order(self._config, len(rows)),
            layout=Layout(self._config.batch.per_device, self._config.mesh.data_parallel),
        )

    @property
    def _records(self) -> Records:
        return Records(self._output, speaks=self.place.rank == 0)

    def _resume(self, run: Run) -> History:
        """Continue from the newest checkpoint, if there is one."""
        newest = checkpoint.latest(self._output)
        if newest is None:
            return History()
        extra = checkpoint.load(self._output, newest, run.engine.state())
        run.engine.resumed(newest)
        self.step = newest
        self._records(ResumeRecord(time=time.time(), step=newest))
        return History.model_validate(extra)

    def _checkpoints(self, run: Run, history: History) -> Checkpoints:
        settings = self._config.checkpointing
        return Checkpoints(run, self._output, settings, self._keep_best, self._records, history, self.files)

    def _hooks(self, run: Run, history: History, saves: Checkpoints) -> Sequence[Hook]:
        """Evaluates where the run stands, if that is due."""
        hooks: list[Hook] = [self._note, Progress(run, self._records, history)]
        settings = self._config.validation
        if settings is not None:
            rows = Rows.load(self.folder / VALIDATION)
            evaluation = Evaluation(run, settings, rows, self._records, history, self.stop)
            evaluation.at(self.step)
            hooks.append(evaluation)
        return [*hooks, saves, Stopping(run, self.stop)]

    def _note(self, done: Done) -> None:
        self.step = done.step

    def _publish(self, run: Run, base: PreTrainedModel | PeftModel, digest: str, history: History) -> FinalReport:
        """The result is the last step's weights, or those of the best one where the job asks for it."""
        best = history.best_step if self._keep_best else None
        state = run.engine.state()
        if best is not None and best != self.step:
            checkpoint.load(self._output, best, state)
        card = export.Card(
            base_model=self._config.model,
            method=self._config.method,
            data=self._config.data.train,
            digest=digest,
            step=self.step if best is None else best,
            metrics=_metrics(history, best),
        )
        weights = export.gather(state["parameters"].items())
        result.publish(self._output, base, weights, self.handoff.model_folder, card, self.files)
        return self._report(Exit.OK, digest, history, best)

    def _report(self, code: Exit, digest: str, history: History, best: int | None = None) -> FinalReport:
        meaning = MEANINGS[code]
        return FinalReport(
            time=time.time(),
            exit_code=code,
            reason=meaning.reason,
            message=f"{meaning.sentence} {meaning.remedy}".strip(),
            step=self.step,
            digest=digest,
            result=str(self._output / RESULT) if code is Exit.OK else "",
            metrics=_metrics(history, best),
            best_step=history.best_step,
        )


def rows_per_step(config: RunConfig) -> int:
    return config.batch.per_device * config.batch.accumulation * config.mesh.data_parallel


def order(config: RunConfig, rows: int) -> Order:
    return Order(
        rows=rows,
        rows_per_step=rows_per_step(config),
        epochs=config.schedule.epochs,
        max_steps=config.schedule.max_steps,
        shuffle=config.data.shuffle,
        seed=config.seed,
    )


def _metrics(history: History, best: int | None) -> dict[str, float | None]:
    found = {
        "train.loss": history.train_loss,
        "val.loss": history.latest if best is None else history.best,
        "val.loss.initial": history.initial,
    }
    return {name: value for name, value in found.items() if value is not None}


def _again(output: Path, digest: str, step: int) -> FinalReport:
    """The report of a run that had finished before it was started: the old one, if it is still there."""
    try:
        old = FinalReport.model_validate_json((output / REPORT).read_bytes())
    except (OSError, ValueError):
        old = None
    if old is not None and old.digest == digest and old.exit_code == Exit.OK:
        return old.model_copy(update={"time": time.time()})
    meaning = MEANINGS[Exit.OK]
    return FinalReport(
        time=time.time(), exit_code=Exit.OK, reason=meaning.reason, message=meaning.sentence, step=step,
        digest=digest, result=str(output / RESULT),
    )  # fmt: skip
