"""Casting fp32 master weights to the format that the model computes in.

An update of full finetuning is a tenth of the distance between two bf16 numbers. Rounded to the nearest, it is not
seen by the forward pass until many updates have added up; rounded up with a probability that is the distance to the
lower neighbour, it is seen on average from the first step on (docs/adr/0033). The numbers of fp16 are eight times
closer, and rounded to the nearest.

The random bits depend on the seed, the step, the name of the parameter and the index of the element in the whole
parameter, and on nothing else: replicas round alike, however many ranks a parameter is sharded over.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from finetune_api.runtime import choices
from finetune_api.runtime.choices import Precision
from finetune_api.runtime.run_config import RunConfig

_log = logging.getLogger(__name__)

OnePass = Callable[[Tensor, Tensor, Tensor, int], None]
_PERIOD = 65_521
"""Elements after which the bits of a parameter repeat within a step; a prime, so no row length divides it."""
_ROWS = 16
"""Periods that are rounded at a time on a CPU: the intermediate numbers then stay in its cache, and in one place."""
_LOW_HALF = 1 << 16
"""bf16 is the upper half of fp32's bits."""


class WeightRounding(Protocol):
    def round(self, source: Tensor, target: Tensor, *, name: str, start: int, step: int) -> None:
        """Write `source` (fp32, contiguous) into `target` (of the same shape).

        They are the elements from `start` on, in row-major order, of the parameter `name` after `step` steps.
        """
        ...


def of(config: RunConfig, device: torch.device) -> WeightRounding:
    """The rounding of the weights that a run on `device` computes with."""
    return NearestRounding() if config.precision is Precision.FP16 else to_bf16(config, device)


def to_bf16(config: RunConfig, device: torch.device) -> WeightRounding:
    return (
        NearestRounding() if config.rounding is choices.Rounding.NEAREST else StochasticRounding(config.seed, device)
    )


class NearestRounding:
    @torch.no_grad()
    def round(self, source: Tensor, target: Tensor, **_: object) -> None:
        target.copy_(source)


class StochasticRounding:
    """Rounds parameters of one run on one device to bf16."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed = seed
        bits = np.random.Generator(np.random.PCG64(seed)).integers(0, _LOW_HALF, _PERIOD, dtype=np.int32)
        self._bits = torch.from_numpy(np.concatenate([bits, bits])).to(device)  # twice: every window is contiguous
        self._room = torch.empty(_ROWS * _PERIOD, dtype=torch.int32) if device.type == "cpu" else None
        self._one_pass = _one_pass(self._bits) if device.type == "cuda" else None

    @torch.no_grad()
    def round(self, source: Tensor, target: Tensor, *, name: str, start: int, step: int) -> None:
        first = self._first(name, start, step)
        if self._one_pass is not None:
            self._one_pass(source.view(-1), self._bits, target.view(-1), first)
        else:
            self._in_periods(source.view(torch.int32).view(-1), self._bits[first : first + _PERIOD], target.view(-1))

    def _in_periods(self, numbers: Tensor, window: Tensor, rounded: Tensor) -> None:
        whole = numbers.numel() // _PERIOD * _PERIOD
        rows = max(whole // _PERIOD, 1) if self._room is None else _ROWS
        for begin in range(0, whole, rows * _PERIOD):
            part = slice(begin, min(begin + rows * _PERIOD, whole))
            self._round(numbers[part].view(-1, _PERIOD), window, rounded[part].view(-1, _PERIOD))
        self._round(numbers[whole:], window[: numbers.numel() - whole], rounded[whole:])

    def _round(self, numbers: Tensor, bits: Tensor, target: Tensor) -> None:
        """Write fp32 numbers, given as int32, into `target`; the cast is exact, since the lower half is cleared."""
        room = None if self._room is None else self._room[: numbers.numel()].view(numbers.shape)
        sums = torch.add(numbers, bits, out=room)
        target.copy_(sums.bitwise_and_(-_LOW_HALF).view(torch.float32))

    def _first(self, name: str, start: int, step: int) -> int:
        """Where in a period the bits of an element begin: elsewhere for every parameter and step."""
        key = f"{self._seed} {step} {name}".encode()
        return (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") + start) % _PERIOD


def _one_pass(bits: Tensor) -> OnePass | None:
    """The kernel for the GPU, where it can be compiled; without it torch's operations give the same numbers later."""
    try:
        kernel = importlib.import_module(".rounding_kernel", __package__).round_to_bf16
        kernel(bits[:1].float(), bits, bits[:1].bfloat16(), 0)
    except Exception as error:  # noqa: BLE001 - of Triton, its compilers or the driver; nothing depends on it
        _log.warning("Weights are cast to bf16 without Triton (%s), which takes three times as long.", error)
        return None
    return cast("OnePass", kernel)
