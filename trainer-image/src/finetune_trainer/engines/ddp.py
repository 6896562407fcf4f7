"""DDP: every rank holds the full model; gradients are averaged in buckets during the backward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_api.runtime.run_config import RunConfig

from ..environment import RankInfo
from .base import AdamwEngine, ComputeSettings


class Ddp(AdamwEngine):
    def __init__(self, model: nn.Module, config: RunConfig, rank_info: RankInfo) -> None:
        model.to(rank_info.device)
        self._wrapper = DistributedDataParallel(  # its constructor broadcasts rank 0's weights
            model,
            device_ids=[rank_info.local_rank] if rank_info.device.type == "cuda" else None,
            forward_sync_buffers=False,  # they are constants of the architecture
            gradient_as_bucket_view=True,
        )
        compute = ComputeSettings(rank_info.device, config.precision, config.mesh.data_parallel)
        super().__init__(model, self._wrapper, config.optimizer, compute)

    def _gradient_sync(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._wrapper.no_sync()
