"""In chunks, the loss and its gradients are those of the whole, with the logits of one chunk in memory."""

from __future__ import annotations

import logging
import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig, PreTrainedModel

from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, attention, chunked_loss, loss
from finetune_trainer.chunked_loss import ChunkedLoss, Scaling
from finetune_trainer.collate import TokenBatch, collate
from trainer import architectures, models, syncs
from trainer.parity_cases import rows

V = architectures.VOCABULARY
WORDS = 1024
"""The vocabulary of the model whose memory is measured; nothing else in it has this size."""
ROWS = 5
"""Targets of a chunk, where a test wants several."""
DIVISOR = 7.0


def small(batch: TokenBatch) -> TokenBatch:
    """With the tokens of the tiny architectures."""
    return replace(batch, inputs=batch.inputs % V, labels=batch.labels % V)


@pytest.fixture
def batch() -> TokenBatch:
    return small(collate(rows(3, longest=12), range(3)))


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "CPU_CHUNK", ROWS * V)


def backward(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    total = ChunkedLoss(model).backward(batch, DIVISOR)
    return total, gradients(model)


def backward_whole(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    total = loss.nll(model, batch)
    torch.autograd.backward(total / DIVISOR)
    return total.detach(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def require_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], relative: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) <= relative * float(gradient.norm()), name


@pytest.mark.parametrize("kind", architectures.ALL)
def test_one_chunk_has_the_bits_of_the_whole(kind: str, batch: TokenBatch) -> None:
    model = architectures.model(kind)
    (total, ours), (expected, theirs) = backward(model, batch), backward_whole(model, batch)
    assert torch.equal(total, expected)
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())
    assert torch.equal(ChunkedLoss(model).evaluate(batch), expected)


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("kind", architectures.ALL)
def test_several_chunks_are_the_whole(kind: str, batch: TokenBatch, caplog: pytest.LogCaptureFixture) -> None:
    assert len(batch.labels) > 2 * ROWS
    model = architectures.model(kind)
    (total, ours), (expected, theirs) = backward(model, batch), backward_whole(model, batch)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    require_close(ours, theirs)
    assert ChunkedLoss(model).evaluate(batch).item() == pytest.approx(expected.item(), rel=1e-6)
    assert not [record for record in caplog.records if record.name == chunked_loss.__name__]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("targets", ["q_proj", "lm_head"])
def test_an_adapter_on_the_output_head_learns_in_chunks(targets: str, batch: TokenBatch) -> None:
    with warnings.catch_warnings(action="ignore"):  # PEFT's about a head that is tied
        lora = Lora.model_validate({**models.lora(), "target_modules": [targets]})
        model = adapters.attach(architectures.model("llama"), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model.eval()
    (_, ours), (_, theirs) = backward(model, batch), backward_whole(model, batch)
    assert len(ours) > 0
    require_close(ours, theirs, 2e-6)


def test_dropout_does_not_hide_that_the_logits_are_known(batch: TokenBatch) -> None:
    lora = Lora.model_validate(models.lora(dropout=0.5))
    model = adapters.attach(architectures.model("llama"), lora)
    model.train()
    each = ChunkedLoss(model)
    each.backward(batch, DIVISOR)
    assert each._known
    assert model.training


def test_a_loss_that_is_not_finite_says_nothing_of_the_logits(batch: TokenBatch) -> None:
    model = architectures.model("llama")
    each = ChunkedLoss(model)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    assert each.evaluate(batch).isnan()
    assert each._known is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({}, 3.0, id="nothing"),
        pytest.param({"logit_scale": 0.5}, 1.5, id="Cohere multiplies"),
        pytest.param({"lm_head_multiplier": 2.0}, 6.0, id="Falcon H1 multiplies"),
        pytest.param({"logits_scaling": 2.0}, 1.5, id="Granite divides"),
        pytest.param({"final_logit_softcapping": 3.0}, 3 * math.tanh(1), id="Gemma caps"),
    ],
)
def test_scaling_is_by_the_keys_of_the_config(keys: dict[str, float], expected: float) -> None:
    config = PreTrainedConfig()
    for key, value in keys.items():
        setattr(config, key, value)
    found = Scaling.of(config)(torch.tensor(3.0))
    assert found.item() == pytest.approx(expected)


@pytest.mark.usefixtures("several")
def test_target_weights_stay_with_their_targets(batch: TokenBatch) -> None:
    weighted = replace(batch, weights=torch.arange(len(batch.labels), dtype=torch.float32))
    model = architectures.model("llama")
    (total, ours), (expected, theirs) = backward(model, weighted), backward_whole(model, weighted)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    require_close(ours, theirs)


@pytest.mark.usefixtures("several")
def test_a_micro_batch_without_rows_has_gradients_of_zero() -> None:
    model = architectures.model("llama")
    total, ours = backward(model, collate(rows(1), []))
    assert total.item() == 0.0
    assert len(ours) == len(list(model.parameters()))
    assert not any(gradient.any() for gradient in ours.values())


@pytest.mark.usefixtures("several")
def test_bf16_sums_up_in_fp32(batch: TokenBatch) -> None:
    """Chunks of bf16 differ from the whole by roundings of their products, never by those of their sums."""
    exact = backward_whole(architectures.model("llama"), batch)
    model = architectures.model("llama").bfloat16()
    for parameter in model.parameters():
        parameter.grad_dtype = torch.float32
    total, ours = backward(model, batch)
    assert total.dtype is torch.float32
    assert ours["lm_head.weight"].dtype is torch.float32
    assert total.item() == pytest.approx(exact[0].item(), rel=1e-2)
    assert float((ours["lm_head.weight"] - exact[1]["lm_head.weight"]).norm()) < 0.02 * float(
        exact[1]["lm_head.weight"].norm()
    )


def test_a_model_that_does_something_else_to_its_logits_keeps_them_whole(
    batch: TokenBatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = architectures.model("granite")
    expected, theirs = backward_whole(model, batch)
    unknown = ChunkedLoss(model)
    unknown._scaling = Scaling()
    with caplog.at_level(logging.WARNING):
        total = unknown.backward(batch, DIVISOR)
    assert torch.equal(total, expected)
    require_close(gradients(model), theirs, 0.0)
    assert "GraniteForCausalLM" in caplog.text


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("kind", architectures.OURS)
def test_after_the_first_micro_batch_the_cpu_waits_for_nothing(kind: str, batch: TokenBatch) -> None:
    model = architectures.model(kind)
    attention.use(model)
    each = ChunkedLoss(model)
    assert syncs.of(lambda: each.backward(batch, DIVISOR)) == ["_local_scalar_dense", "equal"], "the first tries"
    assert syncs.of(lambda: each.backward(batch, DIVISOR)) == []


def test_logits_of_all_targets_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many targets need no more memory; without chunks, they need four times as much."""
    model = models.llama(tied=False)
    few = collate(rows(4, longest=60, seed=1), range(4))
    many = four_times(few)
    monkeypatch.setattr(chunked_loss, "CPU_CHUNK", WORDS * (len(few.labels) // 4))
    in_chunks = ChunkedLoss(model)
    in_chunks.backward(few, DIVISOR)
    whole = [peak(model, partial(backward_whole, model, batch)) for batch in (few, many)]
    chunked = [peak(model, partial(in_chunks.backward, batch, DIVISOR)) for batch in (few, many)]
    assert whole[1] == 4 * whole[0]
    assert chunked[1] == chunked[0]
    assert chunked[0] < whole[0] / 3


def four_times(batch: TokenBatch) -> TokenBatch:
    size = batch.inputs.numel()
    return replace(
        batch,
        inputs=batch.inputs.repeat(4, 1),
        targets=torch.cat([batch.targets + size * copy for copy in range(4)]),
        labels=batch.labels.repeat(4),
    )


def peak(model: PreTrainedModel, work: Callable[[], object]) -> int:
    """Bytes of logits, and of whatever else has one number for each target and word of the vocabulary."""
    tracked = Tracked(model.config.hidden_size)
    with tracked:
        work()
    return tracked.peak


class Tracked(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Memory of the tensors [targets, vocabulary] that operators make, while they live."""

    def __init__(self, hidden: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._hidden = hidden
        """Rows of the transposed output head, which is as wide as logits are."""
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if (
                isinstance(each, Tensor)
                and each.dim() == 2
                and each.shape[1] == WORDS != each.shape[0] != self._hidden
            ):
                storage = each.untyped_storage()
                self._alive[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self._alive.pop, storage.data_ptr(), None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return made
