"""One process: no gradient synchronisation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from finetune_api.runtime.run_config import RunConfig

from ..environment import RankInfo
from .base import AdamwEngine, ComputeSettings


class Single(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, rank_info: RankInfo) -> None:
        model.to(rank_info.device)
        super().__init__(model, model, config.optimizer, ComputeSettings(rank_info.device, config.precision, 1))

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()
