"""Weights of eight bits have the numbers of LLM.int8, and layers compute with them."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from finetune_api.runtime.choices import BaseFormat
from finetune_api.runtime.run_config import BaseQuantisation
from finetune_trainer import eight_bits, four_bits, quantised_layer
from finetune_trainer.quantised_layer import QuantisedLinear

HOW = BaseQuantisation(format=BaseFormat.INT8, double=False)
NF4 = BaseQuantisation(format=BaseFormat.NF4, double=False)
SHAPES = ((64, 128), (160, 96), (5, 160), (3, 33), (1, 1), (700, 640))
DTYPES = (torch.float32, torch.bfloat16)


def random(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    return (weight * torch.logspace(-3, 2, rows)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_codes_are_the_nearest_of_255_numbers_of_a_row(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = random(rows, columns, dtype)
    codes, scales = eight_bits.quantise(weight)
    assert (codes.dtype, codes.shape) == (torch.uint8, (rows * columns,))
    exact = weight.double()
    step = exact.abs().amax(1, keepdim=True) / 127
    found = eight_bits.whole(codes, scales, weight.shape, torch.float32).double()
    coarse = 2.0**-8 if dtype is torch.bfloat16 else 1e-6
    assert float(((found - exact).abs() / step).max()) <= 0.5 + 127 * coarse


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_numbers_are_those_of_bitsandbytes(rows: int, columns: int) -> None:
    weight = random(rows, columns, torch.float16)
    theirs, largest, _ = four_bits.library().int8_vectorwise_quant(weight)
    codes, scales = eight_bits.quantise(weight.float())
    off = (codes.view(torch.int8).view(weight.shape).int() - theirs.int()).abs()
    assert int(off.max()) <= 1, "more than a tie that its fp16 rounds the other way"
    assert float((off > 0).float().mean()) <= 0.02
    torch.testing.assert_close(scales.rows * 127, largest.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    weight = random(8, 16)
    weight[3, 4] = number
    with pytest.raises(ValueError, match="numbers that are not finite"):
        quantised_layer.quantise(weight, HOW)


def test_a_row_of_zeros_stays_one() -> None:
    weight = random(4, 16)
    weight[2] = 0
    codes, scales = eight_bits.quantise(weight)
    assert not eight_bits.whole(codes, scales, weight.shape, torch.float32)[2].any()


def test_a_weight_may_be_a_view_of_another() -> None:
    weight = random(16, 4)
    found = [eight_bits.whole(*eight_bits.quantise(each), each.shape, torch.float32)
             for each in (weight.t(), weight.t().contiguous())]  # fmt: skip
    assert torch.equal(*found)


def test_an_outlier_costs_its_own_row_only() -> None:
    weight, same = random(4, 64), random(4, 64)
    weight[1, 5] = 1e6
    found, expected = (
        eight_bits.whole(*eight_bits.quantise(each), each.shape, torch.float32) for each in (weight, same)
    )
    assert torch.equal(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert not torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_computes_what_a_plain_one_with_its_numbers_does(dtype: torch.dtype) -> None:
    plain = nn.Linear(160, 48, dtype=dtype).requires_grad_(False)
    codes, scales = quantised_layer.quantise(plain.weight, HOW)
    ours, same = QuantisedLinear(plain, nn.Parameter(codes, requires_grad=False), scales, HOW), copy.deepcopy(plain)
    same.weight.copy_(ours.whole(ours.weight))
    assert not torch.equal(same.weight, plain.weight)
    results = []
    for module in (ours, same):
        x = torch.randn(3, 5, 160, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        y = module(x)
        y.backward(torch.ones_like(y))
        assert x.grad is not None
        results.append((y.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_it_needs_no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    four_bits.library.cache_clear()
    try:
        quantised_layer.require(HOW, torch.device("cpu"))
        plain = nn.Linear(64, 8)
        codes, scales = quantised_layer.quantise(plain.weight.detach(), HOW)
        layer = QuantisedLinear(plain, nn.Parameter(codes, requires_grad=False), scales, HOW)
        assert layer(torch.ones(2, 64)).isfinite().all()
        with pytest.raises(ImportError):
            quantised_layer.quantise(plain.weight.detach(), NF4)
    finally:
        four_bits.library.cache_clear()
