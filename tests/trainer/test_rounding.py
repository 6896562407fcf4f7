"""Stochastic rounding: to one of the two neighbours, right on average, and alike wherever an element is."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from finetune_trainer import rounding
from finetune_trainer.rounding import StochasticRounding

LONG = 200_000
"""Elements of several periods of random bits and a part of one."""


def rounded(weight: Tensor, *, name: str = "w", start: int = 0, step: int = 0, seed: int = 1) -> Tensor:
    target = torch.empty_like(weight, dtype=torch.bfloat16)
    StochasticRounding(seed, weight.device).round(weight, target, name=name, start=start, step=step)
    return target


def weights(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_every_weight_becomes_one_of_its_two_neighbours() -> None:
    weight = weights(LONG)
    below = (weight.view(torch.int32) & ~0xFFFF).view(torch.float32)
    above = ((weight.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    found = rounded(weight).float()
    assert torch.all((found == below) | (found == above))
    assert 0.4 < float((found == above).float().mean()) < 0.6


def test_a_weight_that_bf16_has_stays_as_it_is() -> None:
    weight = weights(LONG).bfloat16().float()
    assert torch.equal(rounded(weight).float(), weight)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mean_of_many_roundings_is_the_weight(share: float) -> None:
    low, high = 1.0, 1.0 + 2.0**-7
    weight = torch.full((LONG,), low + share * (high - low))
    up = (rounded(weight).double() - low) / (high - low)
    assert float(up.mean()) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("cuts", [(100_000,), (1, 70_000, 131_041), (65_521,)])
def test_shards_are_rounded_as_the_whole_is(cuts: tuple[int, ...]) -> None:
    weight = weights(LONG)
    bounds = [0, *cuts, LONG]
    parts = [rounded(weight[a:b].clone(), start=a) for a, b in pairwise(bounds)]
    assert torch.equal(torch.cat(parts), rounded(weight))


def test_rows_are_rounded_as_their_elements_are() -> None:
    weight = weights(LONG)
    assert torch.equal(rounded(weight.view(400, 500)).view(-1), rounded(weight))


@pytest.mark.parametrize("other", [{"name": "v"}, {"step": 1}, {"seed": 2}])
def test_the_bits_are_others_for_another_parameter_step_or_seed(other: dict[str, int]) -> None:
    weight = weights(LONG)
    assert torch.equal(rounded(weight), rounded(weight))
    differ = (rounded(weight) != rounded(weight, **other)).float().mean()  # type: ignore[arg-type]
    assert float(differ) > 0.2


def test_what_is_not_finite_stays_so() -> None:
    weight = torch.tensor([float("inf"), -float("inf"), float("nan")])
    found = rounded(weight).float()
    assert torch.equal(found[:2], weight[:2])
    assert bool(found[2].isnan())


@pytest.mark.skipif(find_spec("triton") is None, reason="torch brings Triton on Linux only")
def test_the_kernel_of_a_gpu_rounds_to_the_same_bits() -> None:
    """Triton's interpreter runs it on the CPU; it has to be asked for before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from trainer import test_rounding; test_rounding.compare_kernel()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)


def compare_kernel() -> None:
    kernel = import_module("finetune_trainer.rounding_kernel").round_to_bf16
    for count, start in [(LONG, 0), (LONG, 70_001), (4096, 65_520), (1, 3), (0, 0)]:
        cpu, weight = StochasticRounding(1, torch.device("cpu")), weights(count)
        expected, found = (torch.empty_like(weight, dtype=torch.bfloat16) for _ in range(2))
        cpu.round(weight, expected, name="w", start=start, step=3)
        kernel(weight, cpu._bits, found, cpu._first("w", start, 3))
        assert torch.equal(found, expected), (count, start)
    special = torch.tensor([0x7FFFFFFF, -1, 0x7FC00000, 0x7F800000, -0x800000], dtype=torch.int32).view(torch.float32)
    found = torch.empty_like(special, dtype=torch.bfloat16)
    kernel(special, cpu._bits, found, 1)
    assert found[:3].isnan().all(), "the first is what CUDA computes"
    assert found[3:].isinf().all()


def test_without_triton_a_gpu_takes_torchs_operations_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "finetune_trainer.rounding_kernel", None)
    assert rounding._one_pass(torch.zeros(2, dtype=torch.int32)) is None
    assert "without Triton" in caplog.text
