"""One run on one rank: claim the output folder, load the model, resume, train, publish the result.

Called by worker.py once the process group is initialised.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.runtime.choices import OptimizerName
from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.protocol import RESULT
from finetune_api.runtime.report import FinalReport, ResumeRecord
from finetune_api.runtime.run_config import Lora, RunConfig, Validation

from . import (
    activations,
    adapters,
    blockwise,
    checkpoint,
    decomposition,
    engines,
    environment,
    export,
    fingerprint,
    identity,
    initial_factors,
    loop,
    merge,
    mesh,
    model,
    publish,
    quantised_layer,
    result,
    scope,
    snapshot,
    space,
    weights,
)
from .background import BackgroundSave
from .collectives import on_every_rank, on_rank_0
from .decomposition import InitialFactors
from .environment import RankInfo
from .errors import NonFinite
from .files import DISK, Files, require_space
from .handoff import ADAPTER, DATA, MODEL, TRAIN, VALIDATION, Handoff, write_digest
from .heartbeat import Heartbeat, HeartbeatFiles
from .history import History
from .hooks import Checkpoints, Evaluation, Progress, Stopping, count_due
from .loop import Hook, StepResult, TrainState
from .model_export import Casting
from .node_inputs import require_same_inputs
from .records import RecordWriter
from .rows import Rows
from .sampler import BatchSharding, Sampler
from .stop import Stop, StopRequested

_log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """One run, from the claim of its output folder to its report."""

    handoff: Handoff
    folder: Path
    """Contains the prepared rows."""
    rank_info: RankInfo
    stop: Stop
    files: Files = DISK
    """All writes of checkpoints and results go through this; tests inject failures here."""
    step: int = 0
    """Optimizer steps done; the report of a failure includes it."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    _of_result: Mapping[str, str] = field(default_factory=dict, init=False)
    """Of the model's files, as they were loaded (fingerprint.py)."""

    def run(self) -> FinalReport:
        """Raises a RunError, or any other exception if it is a bug."""
        digest = self._claim()
        marker = result.finished(self._output, digest)
        if marker is not None:
            self._add_merged()
            return on_rank_0(lambda: _repeat_report(self._output, digest, marker.step))
        on_rank_0(self._remove_leftovers)
        for dataset in self.handoff.datasets:
            self._write_record(dataset)
        with identity.given_up_if_refused(self._output, self._identity):
            base = self._load()
            train_state = self._train_state(base)
        history = self._resume(train_state)
        self._forget_outdated(history)
        checkpoints = self._checkpoints(train_state, history)
        self._require_space(train_state)
        try:
            loop.fit(train_state, self.step, self._hooks(train_state, history, checkpoints))
        except StopRequested:
            checkpoints.save(self.step)
            return self._report(Exit.STOPPED, digest, history)
        except Exception:
            self._saving.settle(_LAST_SAVE_S)
            raise
        checkpoints.wait()
        if history.skipped_steps == self.step > 0:
            raise NonFinite(_NOTHING_APPLIED.format(steps=self.step))
        with self.heartbeat.saving():
            return self._publish(train_state, base, digest, history)

    @property
    def _config(self) -> RunConfig:
        return self.handoff.config

    @property
    def _output(self) -> Path:
        return Path(self._config.output)

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        content = {name: digest for name, digest in self.handoff.digests.items() if name in (MODEL, DATA, ADAPTER)}
        return identity.document(self._config, content, rows_per_step(self._config))

    @cached_property
    def _mesh(self) -> mesh.RankMesh:
        return mesh.build(self._config, self.rank_info)

    @cached_property
    def _saving(self) -> BackgroundSave:
        return BackgroundSave()

    @property
    def _files(self) -> Files:
        return HeartbeatFiles(self.files, self.heartbeat)

    @property
    def _keep_best(self) -> bool:
        return self._config.validation is not None and self._config.validation.keep_best

    def _claim(self) -> str:
        require_same_inputs(self.handoff)
        identity.claim(self._output, self._identity)
        on_rank_0(partial(result.require_unchanged, self._output))  # before the report of the finished run goes
        digest = identity.digest(self._identity)
        if self.rank_info.local_rank == 0:
            write_digest(self.folder, digest)
        return digest

    def _remove_leftovers(self) -> None:
        """What earlier runs have left, which were refused, stopped or killed."""
        publish.remove_report(self._output)
        checkpoint.remove_leftovers(self._output, self._files)
        result.remove_leftovers(self._output, self._files)

    def _load(self) -> PreTrainedModel | PeftModel:
        how = self._config.quantisation
        if how is not None:
            on_every_rank(lambda: quantised_layer.require(how, self.rank_info.device))
            on_rank_0(lambda: activations.require_quantised_to_compute(self.handoff.model_folder, self._config))
        if self._config.optimizer.name is OptimizerName.ADAMW_8BIT:
            on_every_rank(lambda: blockwise.require(self.rank_info.device))
        scope.say(self.handoff.model_folder, self._config)
        longest = int(Rows.load(self.folder / TRAIN).lengths.max()) - 1
        recomputed = activations.decide(self.handoff.model_folder, self._config, self._mesh, longest)
        environment.seed(self._config.seed)
        folder, device = self.handoff.model_folder, self.rank_info.device
        initial = initial_factors.of_run(folder, self._config, device, self.heartbeat.active)
        base = model.load(folder, self._config, self._keep, device, initial)
        self._of_result = on_rank_0(partial(fingerprint.of_result, self.handoff.model_folder))
        on_every_rank(self._require_unchanged)
        adapted = base if self._config.lora is None else self._adapted(base, self._config.lora, initial)
        if self._config.merge and isinstance(adapted, PeftModel):
            on_rank_0(partial(merge.require_possible, self.handoff.model_folder, adapted))
        activations.recompute(adapted, recomputed)
        environment.seed(self._config.seed, self._mesh.data_rank)
        return adapted

    def _adapted(self, base: PreTrainedModel, lora: Lora, initial: Mapping[str, InitialFactors]) -> PeftModel:
        found = adapters.attach(base, lora)
        decomposition.begin(found, initial)
        if lora.folder:
            on_every_rank(partial(self._take_values, found, Path(lora.folder)))
        return found

    def _take_values(self, adapted: PeftModel, folder: Path) -> None:
        """From an earlier adapter. A resume takes the values of its checkpoint in their place."""
        adapters.take_values(adapted, folder, self._keep)
        if self.rank_info.local_rank == 0:
            fingerprint.require_same_adapter(folder, self.handoff.digests[ADAPTER])

    def _require_unchanged(self) -> None:
        if self.rank_info.local_rank == 0:
            fingerprint.require_unchanged(self.handoff.base_folder, self.handoff.digests[MODEL])

    def _keep(self, weight: Tensor) -> Tensor:
        self.heartbeat.active()
        return engines.kept(self._config, self._mesh)(weight)

    def _train_state(self, base: PreTrainedModel | PeftModel) -> TrainState:
        rows = Rows.load(self.folder / TRAIN)
        return TrainState(
            config=self._config,
            mesh=self._mesh,
            engine=engines.build(base, self._config, self._mesh),
            rows=rows,
            sampler=sampler(self._config, len(rows)),
            sharding=BatchSharding(self._config.batch.per_device, self._mesh.data_size),
            heartbeat=self.heartbeat,
            stop=self._should_stop,
        )

    def _should_stop(self) -> bool:
        """A save that has failed ends the run after the next step, on every rank."""
        return self.stop.requested() or self._saving.failed

    @property
    def _write_record(self) -> RecordWriter:
        return RecordWriter(self._output, enabled=self.rank_info.rank == 0)

    def _resume(self, train_state: TrainState) -> History:
        """Load the newest checkpoint, if there is one."""
        newest = checkpoint.latest(self._output)
        if newest is None:
            return History()
        state = train_state.engine.state()
        extra = checkpoint.load(self._output, newest, state, self.heartbeat.active)
        train_state.engine.resumed(state, newest)
        self.step = newest
        self.heartbeat.resumed(newest)
        self._write_record(ResumeRecord(time=time.time(), step=newest))
        return History.model_validate(extra)

    def _forget_outdated(self, history: History) -> None:
        """Losses of other validation rows are not compared, and a best step without its weights is not published."""
        rows = self.handoff.digests.get(VALIDATION)
        forgotten = rows is not None and history.validate_on(rows, self.step)
        best = history.best_step
        if self._keep_best and best is not None and not checkpoint.is_valid(self._output, best):
            history.forget_best(self.step)
            forgotten = True
        if forgotten and self.rank_info.rank == 0:
            _log.warning("%s", history.note)

    def _checkpoints(self, train_state: TrainState, history: History) -> Checkpoints:
        settings = self._config.checkpointing
        return Checkpoints(
            train_state,
            self._output,
            settings,
            self._keep_best,
            self._write_record,
            history,
            self._files,
            self._saving,
            saved=self.step or -1,
        )

    def _require_space(self, train_state: TrainState) -> None:
        """A volume that cannot take what this run is going to write is refused before it trains."""
        settings, validation = self._config.checkpointing, self._config.validation
        state = train_state.engine.state()
        intervals = [settings.every_steps]
        if validation is not None and validation.keep_best:
            intervals.append(validation.every_steps)
        needed = space.needed(
            there=checkpoint.count(self._output),
            saves=count_due(self.step, intervals, train_state.sampler),
            kept=settings.keep + self._keep_best,
            checkpoint=snapshot.size(state),
            result=self._result_size(train_state.engine.model, state),
        )
        on_rank_0(partial(require_space, self._output, needed, _MERGE_LATER if self._config.merge else ""))

    def _result_size(self, model: Any, state: Mapping[str, Any]) -> int:
        if self._config.lora is None:
            return weights.size(self.handoff.model_folder)
        merged = weights.size(self.handoff.model_folder) if self._config.merge else 0
        adapter = {"adapter": export.in_file(model, state["parameters"]), "initial": decomposition.state(model)}
        return snapshot.size(adapter) + merged

    def _hooks(self, train_state: TrainState, history: History, checkpoints: Checkpoints) -> Sequence[Hook]:
        """Also evaluates the current step, if that is due."""
        hooks: list[Hook] = [self._set_step, Progress(train_state, self._write_record, history)]
        settings = self._config.validation
        if settings is not None:
            rows = Rows.load(self.folder / VALIDATION)
            evaluation = Evaluation(train_state, settings, rows, self._write_record, history, self.stop)
            evaluation.at(self.step)
            hooks.append(evaluation)
        return [*hooks, checkpoints, Stopping(train_state.sampler)]

    def _set_step(self, step_result: StepResult) -> None:
        self.step = step_result.step

    def _publish(
        self, train_state: TrainState, base: PreTrainedModel | PeftModel, digest: str, history: History
    ) -> FinalReport:
        """The result has the weights of the last step, or of the best step if the job asks for it.

        Its tokenizer and number formats are those of the base model's files.
        """
        on_rank_0(partial(fingerprint.require_same_for_result, self.handoff.model_folder, self._of_result))
        best = history.best_step if self._keep_best else None
        state = train_state.engine.state()
        if best is not None and best != self.step:
            checkpoint.load(self._output, best, state, self.heartbeat.active)
            train_state.engine.resumed(state, best)
        card = export.ModelCard(
            base_model=self._config.model,
            method=self._config.method,
            data=self._config.data.train,
            digest=digest,
            step=self.step if best is None else best,
            metrics=_metrics(history, self._config.validation, best),
            settings=export.settings(self._config),
            merged=self._config.merge,
        )
        publication = export.Publication(
            base, state["parameters"], self.handoff.model_folder, card, Casting(self._config, card.step)
        )
        result.publish(self._output, publication, self._files)
        self._add_merged()
        return self._report(Exit.OK, digest, history, best)

    def _add_merged(self) -> None:
        """Also to the result of an earlier run, which has trained the same and was not to merge it."""
        if self._config.merge:
            result.add_merged(self._output, self.handoff.model_folder, self._files)

    def _report(self, code: Exit, digest: str, history: History, best: int | None = None) -> FinalReport:
        meaning = MEANINGS[code]
        return FinalReport(
            time=time.time(),
            exit_code=code,
            reason=meaning.reason,
            message=" ".join(
                filter(None, (meaning.sentence, meaning.remedy, _skipped(history, self.step), history.note))
            ),
            step=self.step,
            digest=digest,
            result=str(self._output / RESULT) if code is Exit.OK else "",
            metrics=_metrics(history, self._config.validation, best),
            best_step=history.best_step,
        )


def rows_per_step(config: RunConfig) -> int:
    return config.batch.per_device * config.batch.accumulation * config.mesh.data_parallel


def sampler(config: RunConfig, rows: int) -> Sampler:
    return Sampler(
        rows=rows,
        rows_per_step=rows_per_step(config),
        epochs=config.schedule.epochs,
        max_steps=config.schedule.max_steps,
        shuffle=config.data.shuffle,
        seed=config.seed,
    )


def _skipped(history: History, step: int) -> str:
    count = history.skipped_steps
    return f"{count} of {step} steps changed nothing: their gradients overflowed fp16." if count else ""


_NOTHING_APPLIED = (
    "the gradients of all {steps} steps overflowed fp16, so nothing was trained; train more steps, which lower the "
    "loss scale, or compute in bf16 (hyperparameters.parallelism.bf16)"
)


_MERGE_LATER = (
    "free space on the output volume, lower training.save_total_limit, or leave output.merge out and merge the "
    "result elsewhere (finetune merge)"
)
_LAST_SAVE_S = 10.0
"""How long an error waits for the save that is under way: less than a launcher leaves to the others of a rank that
has ended."""
_NOTHING_TO_DO = "The output already held the result, of step {step}: nothing was trained."


def _metrics(history: History, validation: Validation | None, best: int | None) -> dict[str, float | None]:
    found = {"train.loss": history.train_loss}
    if validation is not None:
        found[validation.metric] = history.latest if best is None else history.best
        found[f"{validation.metric}.initial"] = history.initial
    return {name: value for name, value in found.items() if value is not None}


def _repeat_report(output: Path, digest: str, step: int) -> FinalReport:
    """The report of a run whose result already exists: the earlier report, if it is still there."""
    old = publish.read_report(output)
    if old is not None and old.digest == digest and old.exit_code == Exit.OK:
        now = {"time": time.time(), "message": _NOTHING_TO_DO.format(step=step), "result": str(output / RESULT)}
        return old.model_copy(update=now)
    return FinalReport(
        time=time.time(), exit_code=Exit.OK, reason=MEANINGS[Exit.OK].reason,
        message=_NOTHING_TO_DO.format(step=step), step=step,
        digest=digest, result=str(output / RESULT),
    )  # fmt: skip
