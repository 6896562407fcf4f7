"""AdamW's groups, its state from the start, and clipping to the global norm."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune_trainer import loss, optim
from finetune_trainer.adamw import AdamW
from finetune_trainer.collate import collate
from trainer import models
from trainer.format_work import FormatRun, train
from trainer.parity_cases import rows
from trainer.ranks import run_ranks, values

SETTINGS = models.run_config(Path("model"), Path("data"), Path("output")).optimizer


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in optim.trained(model).items()}


def update(optimizer: AdamW, model: nn.Module, *, divisor: float = 1.0, skip: bool = False) -> None:
    """One step with the gradients of a sum over the model's outputs."""
    model.zero_grad()
    model(torch.arange(8)).square().sum().backward()
    gradients = {name: p.grad for name, p in optim.trained(model).items() if p.grad is not None}
    optimizer.step(weights(model), gradients, 1e-3, torch.tensor(divisor), torch.tensor(float(skip)))


def test_weight_decay_is_for_matrices_only() -> None:
    model = tiny()
    before = copy.deepcopy(weights(model))
    optimizer = AdamW(weights(model), SETTINGS.model_copy(update={"weight_decay": 0.5}))
    nothing = {name: torch.zeros_like(weight) for name, weight in before.items()}
    optimizer.step(weights(model), nothing, 1e-3, torch.tensor(1.0), torch.tensor(0.0))
    decayed = {name for name, weight in weights(model).items() if not torch.equal(weight, before[name])}
    assert decayed == {"0.weight", "1.weight", "3.weight"}


def test_what_is_frozen_is_not_trained() -> None:
    model = tiny()
    model[1].requires_grad_(False)  # type: ignore[index]
    assert set(optim.trained(model)) == {"0.weight", "2.weight", "2.bias", "3.weight"}


def test_a_tied_weight_is_trained_once() -> None:
    assert "lm_head.weight" not in optim.trained(models.llama(tied=True))
    assert "lm_head.weight" in optim.trained(models.llama(tied=False))


@pytest.mark.parametrize("divisor", [1.0, 4.0])
def test_updates_are_those_of_torch_with_gradients_that_were_divided_before(divisor: float) -> None:
    ours, theirs = tiny(), tiny()
    optimizer = AdamW(weights(ours), SETTINGS.model_copy(update={"weight_decay": 0.0}))
    stock = torch.optim.AdamW(theirs.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.0, fused=True)
    for _ in range(3):
        update(optimizer, ours, divisor=divisor)
        stock.zero_grad()
        (theirs(torch.arange(8)).square().sum() / divisor).backward()
        stock.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_step_that_is_skipped_leaves_no_trace() -> None:
    ours, other = tiny(), tiny()
    optimizers = AdamW(weights(ours), SETTINGS), AdamW(weights(other), SETTINGS)
    update(optimizers[0], ours, skip=True)
    for optimizer, model in zip(optimizers, (ours, other), strict=True):
        update(optimizer, model)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("norm", "largest", "divisor"),
    [
        pytest.param(13.0, 0.0, 1.0, id="0 leaves gradients alone"),
        pytest.param(13.0, 20.0, 1.0, id="smaller gradients stay as they are"),
        pytest.param(13.0, 1.3, 10.0, id="larger gradients are scaled down to the norm"),
    ],
)
def test_clipping(norm: float, largest: float, divisor: float) -> None:
    assert float(optim.clipping_divisor(torch.tensor(norm), largest)) == pytest.approx(divisor, rel=1e-6)


ONE_STEP: dict[str, Any] = {
    "optimizer__epsilon": 1e-4, "optimizer__weight_decay": 0.0, "data__shuffle": False, "schedule__max_steps": 1,
}  # fmt: skip
"""AdamW's first update would be the same for gradients of any size, but for this epsilon."""


FP16 = {"precision": "fp16"}
SMALL, LARGE = 0.01, 100.0
"""Norms to clip to; that of the gradients is between them."""


@dataclass(frozen=True)
class Clipped:
    """What that step does in one process with torch's clipping and AdamW."""

    norm: float
    """Before clipping."""
    moments: dict[str, Tensor]
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def by_torch() -> dict[float, Clipped]:
    return {max_norm: clipped(max_norm) for max_norm in (SMALL, LARGE)}


def clipped(max_norm: float) -> Clipped:
    model, batch = models.llama(), collate(rows(29), range(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4, weight_decay=0.0)
    (loss.nll(model, batch) / len(batch.labels)).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    return Clipped(float(norm), moments, weights(model))


@pytest.mark.parametrize(
    ("world", "changes", "max_norm", "relative"),
    [
        pytest.param(1, {}, SMALL, 1e-5, id="one process"),
        pytest.param(2, {"engine": "ddp"}, SMALL, 1e-5, id="ddp"),
        pytest.param(2, {"engine": "fsdp2"}, SMALL, 1e-5, id="fsdp2"),
        pytest.param(1, FP16, SMALL, 1e-2, id="fp16 with its loss scale"),
        pytest.param(1, FP16, LARGE, 1e-2, id="fp16, of which only the scaled gradients are large"),
        pytest.param(2, {"engine": "fsdp2", **FP16}, SMALL, 1e-2, id="fsdp2 in fp16 with its loss scale"),
    ],
)
def test_a_step_with_large_gradients_is_that_of_torch_with_clipped_ones(
    world: int, changes: dict[str, Any], max_norm: float, relative: float, by_torch: dict[float, Clipped]
) -> None:
    wanted = by_torch[max_norm]
    assert 100 * SMALL < wanted.norm < LARGE, "or there is little to clip"
    found: FormatRun = values(run_ranks(world, train, {**ONE_STEP, **changes, "optimizer__max_grad_norm": max_norm}))[
        0
    ]
    assert found.results[0].grad_norm == pytest.approx(wanted.norm, rel=relative)
    for name, before in weights(models.llama()).items():
        assert error(found.state["exp_avg"][name], wanted.moments[name]) <= relative, name
        update, expected = (kind[name] - before for kind in (found.state["parameters"], wanted.weights))
        assert error(update, expected) <= 10 * relative, name


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
