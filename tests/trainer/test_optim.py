"""AdamW's groups, its state from the start, and the global norm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_trainer import optim
from trainer import models

SETTINGS = models.run_config(Path("model"), Path("data"), Path("output")).optimizer


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))


def test_weight_decay_is_for_matrices_only() -> None:
    model = tiny()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optim.adamw(optim.trained(model).values(), SETTINGS).param_groups
    decayed = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decayed == {
        "0.weight": 0.01, "1.weight": 0.01, "3.weight": 0.01, "1.bias": 0.0, "2.weight": 0.0, "2.bias": 0.0,
    }  # fmt: skip


def test_what_is_frozen_is_not_trained() -> None:
    model = tiny()
    model[1].requires_grad_(False)  # type: ignore[index]
    assert set(optim.trained(model)) == {"0.weight", "2.weight", "2.bias", "3.weight"}


def test_a_tied_weight_is_trained_once() -> None:
    assert "lm_head.weight" not in optim.trained(models.llama(tied=True))
    assert "lm_head.weight" in optim.trained(models.llama(tied=False))


def test_moments_made_in_advance_are_those_that_torch_makes() -> None:
    ours, theirs = tiny(), tiny()
    optimizers = (
        optim.adamw(ours.parameters(), SETTINGS.model_copy(update={"weight_decay": 0.0})),
        torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True),
    )
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(8)).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("largest", "after"),
    [
        pytest.param(0.0, 13.0, id="0 leaves gradients alone"),
        pytest.param(20.0, 13.0, id="smaller gradients stay as they are"),
        pytest.param(1.3, 1.3, id="larger gradients are scaled down to the norm"),
    ],
)
def test_clipping(largest: float, after: float) -> None:
    gradients = [torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([12.0]), torch.zeros(0)]
    assert optim.clip(gradients, largest) == pytest.approx(13.0)
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(after, rel=1e-6)


def test_clipping_keeps_the_direction() -> None:
    before: list[Tensor] = [torch.randn(5, 5), torch.randn(7)]
    gradients = copy.deepcopy(before)
    norm = optim.clip(gradients, 0.5)
    for old, new in zip(before, gradients, strict=True):
        torch.testing.assert_close(new, old * 0.5 / norm, rtol=1e-5, atol=0)


def test_a_gradient_that_is_no_number_is_seen_and_not_spread() -> None:
    gradients = [torch.tensor([float("nan"), 1.0]), torch.tensor([1.0])]
    assert not optim.clip(gradients, 1.0) < float("inf")
    assert gradients[1].tolist() == [1.0]
