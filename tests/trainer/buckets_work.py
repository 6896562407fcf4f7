"""Gradients of a few large parameters, summed over ranks in buckets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune_trainer.collectives import rank, world_size
from finetune_trainer.engines.buckets import BUCKET_BYTES, GradientBuckets

PARAMETERS = 5
_ELEMENTS = BUCKET_BYTES // 4 * 2 // 3
"""Two parameters fill a bucket: there are three buckets."""


@dataclass(frozen=True)
class Sums:
    """Of one backward pass, by parameter."""

    digests: list[str]
    errors: list[float]
    """Largest difference from the sum in one process."""


def sums(layout: Sequence[int], orders: Sequence[Sequence[int]]) -> list[Sums]:
    """For each order of the backward pass, with buckets of the parameters in the order `layout`."""
    parameters = [nn.Parameter(torch.zeros(_ELEMENTS)) for _ in range(PARAMETERS)]
    buckets = GradientBuckets([parameters[number] for number in layout])
    return [_sums(buckets, parameters, order) for order in orders]


def _sums(buckets: GradientBuckets, parameters: list[nn.Parameter], order: Sequence[int]) -> Sums:
    for parameter in parameters:
        parameter.grad = None
    with buckets.summing():
        for number in order:
            (parameters[number] @ _gradient(number, rank())).backward()  # type: ignore[no-untyped-call]
    found = Sums([], [])
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None
        expected = sum((_gradient(number, r) for r in range(world_size()) if number in order), torch.zeros(()))
        found.digests.append(hashlib.sha256(parameter.grad.numpy().tobytes()).hexdigest())
        found.errors.append(float((parameter.grad - expected).abs().max()))
    return found


def _gradient(number: int, of_rank: int) -> Tensor:
    return torch.randn(_ELEMENTS, generator=torch.Generator().manual_seed(10 * number + of_rank))
