"""One process: nobody to exchange gradients with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from finetune_api.runtime.run_config import RunConfig

from ..environment import Place
from .base import AdamwEngine, Compute


class Single(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, place: Place) -> None:
        model.to(place.device)
        super().__init__(model, model, config.optimizer, Compute(place.device, config.precision, 1))

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()
