"""The protocol of an engine, and the common base class: AdamW over the parameters of a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig

from .. import decomposition, optim
from ..chunked_loss import ChunkedLoss
from ..collate import TokenBatch
from ..loss_scale import LossScale
from ..master import MasterWeights
from ..mesh import RankMesh
from ..unreached import Unreached

T = TypeVar("T")


@dataclass(frozen=True)
class StepOutcome:
    """What a step has come to, the same on every rank."""

    nll: float
    """Summed over the targets of the step, in nats."""
    norm: float
    """Global norm of the gradients before clipping."""
    skipped: bool
    """The weights are as before: loss or gradients are not finite."""
    stop: bool
    """Some rank has been asked to stop."""
    loss_scale: float | None = None
    """What the loss was multiplied by for the backward pass, if it was. After a skipped step the scale is halved."""
    skipped_steps: int = 0
    """Steps skipped so far by an engine with a loss scale, this one included."""


class TrainingEngine(Protocol):
    """What the training loop calls. Every method is collective: all ranks call it, in the same order."""

    model: nn.Module
    """The module with the names of the checkpoint; its parameters may be sharded, and in the compute format."""
    state_is_a_copy: bool
    """Whether no step changes the tensors of `state`."""

    def train(
        self,
        micro_batches: Iterable[TokenBatch],
        *,
        targets: int,
        learning_rate: float,
        max_norm: float,
        stop: Callable[[], bool],
    ) -> StepOutcome:
        """One optimizer step over this rank's `micro_batches`, of which every rank has the same number.

        Minimises the mean over `targets`, all of the step over all ranks, with gradients clipped to the global norm
        `max_norm` (0: no clipping). Reads from the device once, at the end. `stop` is asked before that.
        """
        ...

    def evaluate(self, batch: TokenBatch) -> Tensor:
        """The summed NLL of this rank's batch, without gradients and without dropout."""
        ...

    def state(self) -> dict[str, Any]:
        """Trained weights and the state of their optimizer: tensors by kind and parameter name. With fp16 also the
        loss scale, and the initial factors of adapters that begin with a part of the base.

        Loading into them in place, then `resumed`, restores its state. Mostly they are the engine's own tensors.
        """
        ...

    def resumed(self, state: Mapping[str, Any], steps: int) -> None:
        """Called after what `state()` gave has been filled with that of `steps` optimizer steps."""
        ...


class AdamwEngine:
    """An engine whose optimizer is AdamW. Subclasses place the weights and synchronise the gradients."""

    state_is_a_copy = False

    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh, weights: MasterWeights) -> None:
        """`model` is on its device; `weights` are its trained ones."""
        self.model = model
        self._mesh = mesh
        self._device = mesh.rank_info.device
        self._weights = weights
        self._optimizer = optim.build(weights.local, model, config.optimizer)
        self._loss = ChunkedLoss(model)
        self._unreached = Unreached(weights.local, speaks=mesh.rank_info.rank == 0)
        self._scale = LossScale() if config.precision is Precision.FP16 else None
        self._steps = 0

    def train(
        self,
        micro_batches: Iterable[TokenBatch],
        *,
        targets: int,
        learning_rate: float,
        max_norm: float,
        stop: Callable[[], bool],
    ) -> StepOutcome:
        scale = self._scale.scale if self._scale else 1.0
        nll = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch, last in _with_last(micro_batches):
            with self._gradient_sync(last):
                nll += self._loss.backward(batch.to(self._device), targets / scale)
        gradients = self._weights.gradients()
        totals = self._sum(nll, gradients, stop())
        norm = totals[1].sqrt() / scale
        skip = ~(totals[0].isfinite() & norm.isfinite())
        divisor = optim.clipping_divisor(norm, max_norm) * scale
        self._steps += 1
        for weights in self._weights.updates(self._steps):
            self._optimizer.step(weights, gradients, learning_rate, divisor.float(), skip.float())
        self._weights.clear_gradients()
        return self._outcome(totals.tolist(), scale)

    def _outcome(self, totals: list[float], scale: float) -> StepOutcome:
        nll, square, stopping, *reached = totals
        skipped = not math.isfinite(nll + square)
        self._unreached.after_step(reached, skipped=skipped)
        outcome = StepOutcome(nll, square**0.5 / scale, skipped, stopping > 0)
        if self._scale is None:
            return outcome
        self._scale.update(overflow=skipped)
        return replace(outcome, loss_scale=scale, skipped_steps=self._scale.skipped_steps)

    def _sum(self, nll: Tensor, gradients: dict[str, Tensor], stop: bool) -> Tensor:
        """fp64, over all ranks: NLL, squared norm of the gradients, how many were asked to stop, what was reached."""
        norm = torch.nn.utils.get_total_norm(list(gradients.values())).double()
        own = norm.square() / self._mesh.size("replicate")  # replicas have the same gradients
        totals = torch.stack([nll, own, torch.full_like(nll, stop)])
        totals = torch.cat([totals, self._unreached.reached(gradients).to(totals.device)])
        self._mesh.sum_over_data(totals)
        return totals

    def evaluate(self, batch: TokenBatch) -> Tensor:
        self.model.eval()
        total = self._loss.evaluate(batch.to(self._device))
        self.model.train()
        return total

    def state(self) -> dict[str, Any]:
        weights = self._weights
        state = {"parameters": weights.whole(weights.local)}
        state |= {kind: weights.whole(parts) for kind, parts in self._optimizer.state().items()}
        if initial := decomposition.state(self.model):
            state["initial"] = initial
        return state | ({"loss_scale": self._scale.state} if self._scale else {})

    def resumed(self, _: Mapping[str, Any], steps: int) -> None:
        self._optimizer.resumed(steps - (self._scale.skipped_steps if self._scale else 0))
        self._steps = steps
        self._weights.publish(steps)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        """Context of one micro batch; after the last one of a step, gradients are sums over all rows of the step."""
        raise NotImplementedError


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last one."""
    iterator = iter(items)
    current = next(iterator)
    for following in iterator:
        yield current, False
        current = following
    yield current, True
