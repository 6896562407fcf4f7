"""The loss is that of the full logits in every architecture, and computing it makes the CPU wait for nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, attention, chunked_loss, loss
from finetune_trainer.collate import TokenBatch, collate
from trainer import architectures, models, syncs
from trainer.parity_cases import rows

ROWS = rows(3, longest=12)


@pytest.fixture
def batch() -> TokenBatch:
    found = collate(ROWS, range(3))
    return replace(
        found, inputs=found.inputs % architectures.VOCABULARY, labels=found.labels % architectures.VOCABULARY
    )


def by_full_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    logits = model(input_ids=batch.inputs, use_cache=False).logits.flatten(0, 1)
    return functional.cross_entropy(logits[batch.targets], batch.labels, reduction="sum")


def by_mask(model: nn.Module, batch: TokenBatch) -> Tensor:
    """The logits of the same positions, chosen by a mask."""
    mask = torch.zeros(batch.inputs.shape, dtype=torch.bool)
    mask.view(-1)[batch.targets] = True
    logits = model(input_ids=batch.inputs, logits_to_keep=mask, use_cache=False).logits
    return functional.cross_entropy(logits, batch.labels, reduction="sum")


def gradients(model: nn.Module, total: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    total.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", architectures.ALL)
def test_loss_and_gradients_are_those_of_the_full_logits(kind: str, batch: TokenBatch) -> None:
    model = architectures.model(kind)
    total, expected = loss.nll(model, batch), by_full_logits(model, batch)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = gradients(model, total), gradients(model, expected)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name


@pytest.mark.parametrize("kind", architectures.ALL)
def test_indices_give_the_same_bits_as_a_mask(kind: str, batch: TokenBatch) -> None:
    model = architectures.model(kind)
    assert torch.equal(loss.nll(model, batch), by_mask(model, batch))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_loss_of_a_model_in_16_bits_is_fp32(dtype: torch.dtype, batch: TokenBatch) -> None:
    model: nn.Module = architectures.model("llama")
    exact, total = loss.nll(model, batch), loss.nll(model.to(dtype), batch)
    assert total.dtype is torch.float32
    assert total.item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("weights", [[1.0], [0.0], [2.0, 0.5, 0.0]], ids=str)
def test_a_weight_multiplies_the_loss_of_its_target(weights: list[float], batch: TokenBatch) -> None:
    model = architectures.model("llama")
    each = [
        loss.nll(model, replace(batch, targets=batch.targets[i : i + 1], labels=batch.labels[i : i + 1]))
        for i in range(len(batch.labels))
    ]
    all_weights = torch.tensor(weights).repeat(len(each))[: len(each)]
    total = loss.nll(model, replace(batch, weights=all_weights))
    assert total.item() == pytest.approx((torch.stack(each) @ all_weights).item(), rel=1e-6)


def test_a_micro_batch_without_rows_has_no_loss_and_gradients_of_zero() -> None:
    model = architectures.model("llama")
    total = loss.nll(model, collate(ROWS, []))
    assert total.item() == 0.0
    found = gradients(model, total)
    assert len(found) == len(list(model.parameters()))
    assert not any(gradient.any() for gradient in found.values())


def test_the_hook_is_gone_afterwards(batch: TokenBatch) -> None:
    model = architectures.model("llama")
    loss.nll(model, batch)
    with pytest.raises(IndexError):
        loss.nll(model, replace(batch, targets=batch.targets + batch.inputs.numel()))
    assert model(input_ids=batch.inputs).logits.shape[:2] == batch.inputs.shape


@pytest.mark.parametrize("kind", architectures.OURS)
@pytest.mark.parametrize("lora", [None, models.lora()], ids=["fft", "lora"])
def test_a_micro_batch_waits_for_nothing(kind: str, lora: dict[str, Any] | None, batch: TokenBatch) -> None:
    base = architectures.model(kind)
    attention.use(base)
    with warnings.catch_warnings(action="ignore"):  # PEFT's about GPT-2
        model = adapters.attach(base, Lora.model_validate(lora)) if lora else base
    model.train()
    assert syncs.of(lambda: loss.nll(model, batch).backward()) == []  # type: ignore[no-untyped-call]


def test_a_mask_and_the_masks_of_transformers_are_found_out(batch: TokenBatch) -> None:
    model = architectures.model("llama")
    assert syncs.of(lambda: loss.nll(model, batch)) == ["_local_scalar_dense"]
    attention.use(model)
    assert syncs.of(lambda: by_mask(model, batch)) == ["index"]


@pytest.mark.parametrize("chunk", [chunked_loss.CPU_CHUNK, 5 * architectures.VOCABULARY], ids=["whole", "chunks"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_router_loss_is_that_of_transformers(
    kind: str, chunk: int, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_loss, "CPU_CHUNK", chunk)
    model = architectures.model(kind)
    without = gradients(model, loss.nll(model, batch) / len(batch.labels))
    model.config.output_router_logits = True
    labels = torch.full((batch.inputs.numel(),), -100)
    labels[batch.targets] = batch.labels
    labels = labels.view_as(batch.inputs)
    whole = model(input_ids=batch.inputs, labels=labels, shift_labels=labels, use_cache=False).loss
    expected = gradients(model, whole)
    direct = gradients(model, loss.nll(model, batch) / len(batch.labels))
    model.zero_grad()
    total = chunked_loss.ChunkedLoss(model).backward(batch, len(batch.labels))
    chunked = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for name, gradient in expected.items():
        for found in (direct, chunked):
            assert float((found[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()), name
    router = next(name for name in expected if "router.weight" in name or "gate.weight" in name)
    assert float((without[router] - expected[router]).norm()) > 1e-3 * float(expected[router].norm())
    assert total.item() == pytest.approx(loss.nll(model, batch).item(), rel=1e-6), "the NLL alone is reported"
    assert whole.item() > 1.0001 * total.item() / len(batch.labels)
