"""Every rank holds the whole model; gradients are averaged in buckets while the backward pass still runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_api.runtime.run_config import RunConfig

from ..environment import Place
from .base import AdamwEngine, Compute


class Ddp(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, place: Place) -> None:
        model.to(place.device)
        self._wrapper = DistributedDataParallel(  # it begins by giving every rank rank 0's weights
            model,
            device_ids=[place.local_rank] if place.device.type == "cuda" else None,
            forward_sync_buffers=False,  # they are constants of the architecture
            gradient_as_bucket_view=True,
        )
        compute = Compute(place.device, config.precision, place.world_size)
        super().__init__(model, self._wrapper, config.optimizer, compute)

    def _exchange(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._wrapper.no_sync()
