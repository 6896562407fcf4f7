"""Layers of four bits compute with the numbers of the format, and stand where an architecture lets them."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from finetune_api.runtime.choices import BaseFormat
from finetune_api.runtime.run_config import BaseQuantisation
from finetune_trainer import activations, architecture, four_bits, quantised_base
from finetune_trainer.errors import ModelRefused, Unsupported
from finetune_trainer.quantised_layer import QuantisedLinear
from trainer import architectures, models

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Appendix E of Dettmers et al. 2023."""
HOW = BaseQuantisation(format=BaseFormat.NF4, double=False)
SHAPES = ((64, 128), (160, 96), (5, 160), (16, 48), (3, 33), (7, 100), (1, 1), (700, 640))
DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt_neox", "granite", "cohere", "phi3",
         "falcon", "gemma3", "qwen2_5_vl")  # fmt: skip


def layer(
    rows: int, columns: int, dtype: torch.dtype, how: BaseQuantisation = HOW
) -> tuple[QuantisedLinear, nn.Linear]:
    """One with a bias, and nn.Linear with the same numbers."""
    torch.manual_seed(rows)
    plain = nn.Linear(columns, rows, dtype=dtype).requires_grad_(False)
    codes, scales = four_bits.quantise(plain.weight, how)
    found = QuantisedLinear(plain, nn.Parameter(codes, requires_grad=False), scales, how)
    same = copy.deepcopy(plain)
    same.weight.copy_(found.whole(found.weight))
    return found, same


def nearest(weight: Tensor) -> Tensor:
    """What the format says, computed from its table."""
    flat = weight.double().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % 64)).view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4, dtype=torch.float64)
    levels = table[(blocks[..., None] / scales.clamp(min=1e-38)[..., None] - table).abs().argmin(-1)]
    return (levels * scales).flatten()[: len(flat)].view(weight.shape)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_numbers_are_those_of_the_format_whatever_the_shape(rows: int, columns: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    plain = nn.Linear(columns, rows, bias=False)
    plain.weight.data = weight
    codes, scales = four_bits.quantise(weight, HOW)
    assert len(codes) == -(-weight.numel() // 2)
    found = QuantisedLinear(plain, nn.Parameter(codes, requires_grad=False), scales, HOW).whole(codes)
    assert float((found - nearest(weight)).abs().max()) <= 1e-6 * float(weight.abs().max())


@pytest.mark.parametrize(("number", "double", "said"), [
    (1e6, True, "outliers beside which most scales would be lost in eight bits; set training.quantization.double"),
    (1e6, False, None),
    (100.0, True, None),
    (float("nan"), False, "numbers that are not finite"),
    (float("inf"), True, "numbers that are not finite"),
])  # fmt: skip
def test_what_the_format_does_not_hold_is_refused(number: float, double: bool, said: str | None) -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(1)) * 0.05
    weight[3, 4] = number
    how = BaseQuantisation(format=BaseFormat.NF4, double=double)
    if said is None:
        four_bits.quantise(weight, how)
        return
    with pytest.raises(ValueError, match=said):
        four_bits.quantise(weight, how)


@pytest.mark.parametrize("double", [True, False])
def test_scales_in_eight_bits_cost_little(double: bool) -> None:
    weight = torch.randn(700, 640, generator=torch.Generator().manual_seed(1))
    plain = nn.Linear(640, 700, bias=False)
    plain.weight.data = weight
    how = BaseQuantisation(format=BaseFormat.NF4, double=double)
    codes, scales = four_bits.quantise(weight, how)
    stored = codes.nbytes + sum(
        getattr(scales, n).nbytes for n in ("scales", "mean", "outer") if getattr(scales, n) is not None
    )
    assert stored * 8 / weight.numel() == pytest.approx(4.127 if double else 4.5, abs=0.001)
    found = QuantisedLinear(plain, nn.Parameter(codes, requires_grad=False), scales, how).whole(codes)
    error = float((found - weight).norm() / weight.norm())
    assert 0.08 <= error <= 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(48, 160), (64, 128)])
def test_a_layer_computes_what_a_plain_one_does(rows: int, columns: int, dtype: torch.dtype) -> None:
    ours, plain = layer(rows, columns, dtype)
    results = []
    for module in (ours, plain):
        x = torch.randn(3, 5, columns, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        y = module(x)
        y.backward(torch.ones_like(y))
        results.append((y.detach(), x.grad))
    (y, of_x), (expected, expected_of_x) = results
    assert of_x is not None
    assert expected_of_x is not None
    assert torch.equal(y, expected)
    assert torch.equal(of_x, expected_of_x)


@torch.no_grad()
@pytest.mark.parametrize("kind", DENSE)
def test_a_model_of_four_bits_is_the_model_with_those_numbers(kind: str) -> None:
    plain = architectures.model(kind)
    ours = copy.deepcopy(plain)
    quantised_base.quantise(ours, BaseQuantisation(format=BaseFormat.NF4, double=True))
    replaced = {name: module for name, module in ours.named_modules() if isinstance(module, QuantisedLinear)}
    head = plain.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert replaced.keys() == {n for n, module in architecture.linear(plain).items() if module is not head} != set()
    for name, module in replaced.items():
        plain.get_submodule(name).get_parameter("weight").copy_(module.whole(module.weight))
    tokens = torch.arange(12).view(2, 6) + 3
    for training in (False, True, False):
        for each in (ours, plain):
            each.train(training)
        torch.manual_seed(0)
        found = ours(input_ids=tokens).logits
        torch.manual_seed(0)
        assert torch.equal(found, plain(input_ids=tokens).logits)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gpt2", "gpt2 has no linear layers that could be quantised"),
        ("mixtral", r"one parameter \(model.layers.*.mlp.experts.gate_up_proj\).*GiB, would stay in 16 bits; train"),
        ("qwen3_moe", "which this version does not quantise"),
        ("gpt_oss", "which this version does not quantise"),
    ],
)
def test_a_base_that_would_stay_in_sixteen_bits_is_refused(kind: str, said: str) -> None:
    with pytest.raises(ModelRefused, match=f"^training.use_qlora: .*{said}"):
        quantised_base.chosen(architectures.model(kind))


OTHERS: dict[str, dict[str, Any]] = {
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "attention_hidden_size": 32},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "intermediate_size": 48,
              "num_attention_heads": 2, "num_key_value_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rwkv", "RwkvForCausalLM reads weights past the layers"),
        ("mamba", "mamba has no linear layers that could be quantised"),
        ("llama", None),
    ],
)
def test_an_architecture_that_reads_weights_by_itself_is_refused_before_they_load(
    tmp_path: Path, kind: str, said: str | None
) -> None:
    settings = AutoConfig.for_model(kind, **OTHERS[kind])
    architecture.auto_class(settings).from_config(settings).save_pretrained(tmp_path)
    config = models.run_config(
        tmp_path,
        tmp_path,
        tmp_path,
        method="qlora",
        lora=models.lora(),
        quantisation={"format": "nf4", "double": True},
    )
    if said is None:
        activations.require_quantised_to_compute(tmp_path, config)
        return
    with pytest.raises(ModelRefused, match=said):
        activations.require_quantised_to_compute(tmp_path, config)


def test_a_base_with_numbers_that_are_not_finite_is_refused_by_the_name_of_the_weight(tmp_path: Path) -> None:
    base = models.llama()
    base.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 5] = torch.nan
    wanted = models.run_config(
        models.save(base, tmp_path / "model"), Path("rows"), Path("output"), method="qlora", lora=models.lora(),
        quantisation={"format": "nf4", "double": True},
    )  # fmt: skip
    with pytest.raises(ModelRefused) as refused:
        models.loaded(tmp_path / "model", wanted)
    assert str(refused.value) == (
        "job.model: model.layers.1.mlp.up_proj.weight cannot be stored in nf4: it has numbers that are not finite; "
        "download the model again, or choose another one"
    )


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bits.require(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    four_bits.library.cache_clear()
    try:
        with pytest.raises(
            Unsupported, match=r"bitsandbytes, which does not work on cpu here: .*extra trainer.*use_qlora: false"
        ):
            four_bits.require(torch.device("cpu"))
    finally:
        four_bits.library.cache_clear()
