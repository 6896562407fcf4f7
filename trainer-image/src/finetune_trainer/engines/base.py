"""The protocol of an engine, and the common base class: AdamW over the parameters of a module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from finetune_api.runtime.run_config import RunConfig

from .. import loss, optim
from ..collate import TokenBatch
from ..master import MasterWeights
from ..mesh import RankMesh

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


class TrainingEngine(Protocol):
    """What the training loop calls. Every method is collective: all ranks call it, in the same order."""

    model: nn.Module
    """The module with the names of the checkpoint; its parameters may be sharded, and in the compute format."""

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
        """Trained weights in fp32 and their moments: tensors by kind and parameter name.

        These are the tensors of the engine itself: loading into them in place, then `resumed`, restores its state.
        """
        ...

    def resumed(self, steps: int) -> None:
        """Called after the state of `steps` optimizer steps has been loaded."""
        ...


class AdamwEngine:
    """An engine whose optimizer is AdamW. Subclasses place the weights and synchronise the gradients."""

    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh, weights: MasterWeights) -> None:
        """`model` is on its device; `weights` are its trained ones."""
        self.model = model
        self._mesh = mesh
        self._device = mesh.rank_info.device
        self._weights = weights
        self._optimizer = optim.build(weights.local, config.optimizer)
        self._steps = 0
        weights.publish(0)

    def train(
        self,
        micro_batches: Iterable[TokenBatch],
        *,
        targets: int,
        learning_rate: float,
        max_norm: float,
        stop: Callable[[], bool],
    ) -> StepOutcome:
        nll = torch.zeros((), dtype=torch.float64, device=self._device)
        for batch, last in _with_last(micro_batches):
            with self._gradient_sync(last):
                total = loss.nll(self.model, batch.to(self._device))
                torch.autograd.backward(total / targets)
            nll += total.detach()
        gradients = self._weights.gradients()
        totals = self._sum(nll, gradients, stop())
        norm = totals[1].sqrt()
        skip = ~(totals[0].isfinite() & norm.isfinite())
        divisor = optim.clipping_divisor(norm, max_norm)
        self._optimizer.step(gradients, learning_rate, divisor.float(), skip.float())
        self._weights.clear_gradients()
        self._steps += 1
        self._weights.publish(self._steps)
        summed, square, stopping = totals.tolist()
        return StepOutcome(summed, square**0.5, not math.isfinite(summed + square), stopping > 0)

    def _sum(self, nll: Tensor, gradients: dict[str, Tensor], stop: bool) -> Tensor:
        """Over all ranks: NLL, squared norm of the gradients, and how many were asked to stop. fp64 [3]."""
        norm = torch.nn.utils.get_total_norm(list(gradients.values())).double()
        own = norm.square() / self._mesh.size("replicate")  # replicas have the same gradients
        totals = torch.stack([nll, own, torch.full_like(nll, stop)])
        self._mesh.sum_over_data(totals)
        return totals

    def evaluate(self, batch: TokenBatch) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            total = loss.nll(self.model, batch.to(self._device))
        self.model.train()
        return total

    def state(self) -> dict[str, Any]:
        weights = self._weights
        return {
            "parameters": weights.whole(weights.local),
            "exp_avg": weights.whole(self._optimizer.exp_avg),
            "exp_avg_sq": weights.whole(self._optimizer.exp_avg_sq),
        }

    def resumed(self, steps: int) -> None:
        self._optimizer.resumed(steps)
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
