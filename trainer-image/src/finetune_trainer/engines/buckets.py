"""Sums of gradients over replicas, in buckets, while the backward pass still computes.

Which gradient is in which bucket follows from the order of the parameters alone, so sums have the same bits in every
step and after a resume. (torch's DistributedDataParallel lays its buckets out again after the first step.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""Large enough to use the network well, small enough to begin early."""


class GradientBuckets:
    """Buckets of `parameters`, last ones first: the backward pass comes to them in about this order."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = _buckets(list(reversed(parameters)))
        self._bucket_of: dict[Tensor, int] = {p: n for n, bucket in enumerate(self._buckets) for p in bucket}
        self._missing: list[int] = []
        """Gradients that each bucket waits for, in the micro batch that is summed."""
        self._pending: list[dist.Work] = []
        """Sums under way, of the first buckets: every rank begins them in the same order."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._ready)  # type: ignore[no-untyped-call]

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Context of the last micro batch of a step: at its end the gradients are sums over all ranks."""
        self._missing = [len(bucket) for bucket in self._buckets]
        yield
        self._begin(len(self._buckets))  # of parameters that had no part in the loss, too
        for work in self._pending:
            work.wait()
        self._missing, self._pending = [], []

    def _ready(self, parameter: Tensor) -> None:
        if not self._missing:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        self._begin(next((n for n, missing in enumerate(self._missing) if missing), len(self._missing)))

    def _begin(self, until: int) -> None:
        for bucket in self._buckets[len(self._pending) : until]:
            flat = torch.cat([_flat_gradient(parameter) for parameter in bucket])
            for parameter, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)
            work = dist.all_reduce(flat, async_op=True)
            assert work is not None
            self._pending.append(work)


def _flat_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.numel(), dtype=parameter.grad_dtype, device=parameter.device)
    return parameter.grad.reshape(-1)


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: list[list[nn.Parameter]] = [[parameters[0]]]
    size = 0
    for before, parameter in pairwise(parameters):
        size += before.numel() * 4
        if size >= BUCKET_BYTES or parameter.grad_dtype != before.grad_dtype:
            found.append([])
            size = 0
        found[-1].append(parameter)
    return found
