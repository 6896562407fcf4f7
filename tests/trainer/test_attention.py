"""Our attention computes what transformers computes with SDPA, bit by bit, and leaves alone what needs another."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from finetune_trainer import attention
from trainer import architectures

INPUTS = torch.arange(18).view(2, 9) + 3
"""Longer than the windows of the architectures."""


def outputs(model: nn.Module) -> dict[str, Tensor]:
    """Logits, and the gradients of their squares."""
    model.zero_grad()
    logits = model(input_ids=INPUTS, use_cache=False).logits
    logits.square().sum().backward()
    return {"logits": logits, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("kind", architectures.OURS)
def test_logits_and_gradients_have_the_bits_of_sdpa(kind: str) -> None:
    model = architectures.model(kind)
    assert model.config._attn_implementation == "sdpa"
    expected = outputs(model)
    attention.use(model)
    assert model.config._attn_implementation == attention.NAME
    found = outputs(model)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("kind", architectures.THEIRS)
def test_a_model_that_needs_its_own_attention_keeps_it_and_is_named(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = architectures.model(kind)
    given = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        attention.use(model)
    assert model.config._attn_implementation == given
    ours = [record.message for record in caplog.records if record.name == attention.__name__]
    assert ours == [architectures.THEIRS[kind]]


def test_the_configuration_that_is_published_does_not_have_our_name() -> None:
    model = architectures.model("llama")
    attention.use(model)
    assert attention.NAME not in model.config.to_json_string(use_diff=False)
