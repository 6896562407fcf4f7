"""An engine that leaves sums of gradients to torch's DistributedDataParallel, to show what resume tests detect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.chunked_loss import ChunkedLoss
from finetune_trainer.engines.replicated import Replicated
from finetune_trainer.mesh import RankMesh
from finetune_trainer.optim import trained

BUCKET_MIB = 0.5
"""The model of the tests then has several buckets."""


class TorchDdp(Replicated):
    """Lays its buckets out by the order of the parameters, and after the first sum by the order of the backward."""

    def __init__(self, model: nn.Module, config: RunConfig, mesh: RankMesh) -> None:
        super().__init__(model, config, mesh)
        self._parameters = trained(model).values()
        self._ranks = mesh.data_size
        self._ddp = self.model = DistributedDataParallel(model, bucket_cap_mb=BUCKET_MIB)
        self._loss = ChunkedLoss(self._ddp)  # through its forward pass, which prepares the sums

    @contextmanager
    def _gradient_sync(self, last: bool) -> Iterator[None]:
        with nullcontext() if last else self._ddp.no_sync():
            yield
        for parameter in self._parameters if last else ():
            assert parameter.grad is not None
            parameter.grad *= self._ranks  # the sum again, of what it has made a mean
