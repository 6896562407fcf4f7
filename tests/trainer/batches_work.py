"""Short runs of the loop, with the threads that they leave and the batches that their steps get."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch

from finetune_trainer import attention, loop, mesh
from finetune_trainer.collate import TokenBatch, collate
from finetune_trainer.engines import StepOutcome, build
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import NonFinite
from finetune_trainer.loop import StepResult, TrainState
from finetune_trainer.sampler import BatchSharding
from finetune_trainer.stop import StopRequested
from finetune_trainer.trainer import sampler
from trainer import models, syncs
from trainer.parity_cases import Recording, group, rows

_ERRORS: dict[str, tuple[type[Exception], ...]] = {
    "last step": (), "stop": (StopRequested,), "loss that is not finite": (NonFinite,),
}  # fmt: skip
ENDINGS = tuple(_ERRORS)


class _Seeing(Recording):
    """Keeps the inputs of every micro batch."""

    seen: list[list[list[int]]]

    def train(self, micro_batches: Iterable[TokenBatch], **settings: Any) -> StepOutcome:
        batches = list(micro_batches)
        self.seen += [batch.inputs.tolist() for batch in batches]
        return super().train(batches, **settings)


def _train_state(**changes: Any) -> TrainState:
    config = models.run_config(Path("model"), Path("data"), Path("output"), **changes)
    data = rows(11)
    alone = mesh.build(config, RankInfo(0, 1, 0, torch.device("cpu")))
    model = models.llama()
    attention.use(model)
    engine = _Seeing(build(model, config, alone))
    engine.seen = []
    return TrainState(config, alone, engine, data, sampler(config, len(data)), BatchSharding(2, 1))


def threads(ending: str) -> tuple[list[str], list[str]]:
    """The worker threads after the first step and after the end of a run."""
    during: list[str] = []

    def hook(result: StepResult) -> None:
        during[:] = during or _workers()
        if ending == "stop" and result.step == 2:
            raise StopRequested
        if ending == "loss that is not finite" and result.step == 2:
            with torch.no_grad():
                next(train_state.engine.model.parameters()).fill_(float("nan"))

    train_state = _train_state()
    with group(), suppress(*_ERRORS[ending]):
        loop.fit(train_state, 0, [hook])
    return during, _workers()


def inputs_by_step() -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """Inputs of all micro batches over two epochs, as the sampler has them and as the engine got them."""
    train_state = _train_state()
    with group():
        loop.fit(train_state, 0, [])
    expected = [
        collate(train_state.rows, indices).inputs.tolist()
        for step in range(train_state.sampler.total_steps)
        for indices in train_state.sharding.micro_batches(train_state.sampler.step_rows(step), 0)
    ]
    assert isinstance(train_state.engine, _Seeing)
    return expected, train_state.engine.seen


def waits_of_a_step(precision: str) -> list[str]:
    """Operators of one step that make the CPU wait, but for the read of its outcome, which is none."""
    train_state = _train_state(precision=precision)
    with group(), closing(loop.micro_batches(train_state, [0, 1])) as coming:
        loop.train_step(train_state, 0, coming)
        return syncs.of(lambda: loop.train_step(train_state, 1, coming))


def _workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("collate")]
