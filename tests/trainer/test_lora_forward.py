"""Layers with adapters compute what PEFT's do, with one rounding, and keep no more for the backward pass."""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from finetune_api.runtime.choices import Engine
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, lora_forward
from finetune_trainer.lora_forward import LoraLinear
from trainer import activations_work, architectures, models, syncs
from trainer.lora_update import kept
from trainer.parity_cases import cases, traces
from trainer.ranks import run_ranks, values

INPUTS, OUTPUTS, SEED = 96, 160, 5
BASES = {
    "linear": lambda: nn.Linear(INPUTS, OUTPUTS, bias=False),
    "linear with bias": lambda: nn.Linear(INPUTS, OUTPUTS),
    "conv1d": lambda: Conv1D(OUTPUTS, INPUTS),  # type: ignore[no-untyped-call]
}
SHAPES = ((2, 33, INPUTS), (1300, INPUTS), (INPUTS,), (0, 7, INPUTS))
HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Largest relative error of one rounding."""
TOLERANCE = 1e-6


class Around(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.layer = base

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def layers(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, Any]:
    """Ours and PEFT's with the same numbers, B included."""
    torch.manual_seed(0)
    base: Any = Around(BASES[kind]())  # type: ignore[no-untyped-call]
    if kind != "linear":
        nn.init.normal_(base.layer.bias)
    both = []
    for ours in (True, False):
        given = LoraConfig(r=8, lora_alpha=12, target_modules=["layer"], fan_in_fan_out=kind == "conv1d", **settings)
        if ours:
            lora_forward.use(given, LoraLinear)
        model: Any = get_peft_model(copy.deepcopy(base), given)
        both.append(model.base_model.model.layer)
    nn.init.normal_(both[0].lora_B["default"].weight, std=0.1)
    both[1].load_state_dict(both[0].state_dict())
    assert [type(each) for each in both] == [LoraLinear, lora.Linear]
    return both[0].to(dtype), both[1].to(dtype)


def results(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients, by name."""
    for parameter in layer.parameters():
        if parameter.requires_grad:
            parameter.grad_dtype = torch.promote_types(parameter.dtype, torch.float32)
    own = x.detach().requires_grad_()
    torch.manual_seed(SEED)
    y = layer(own)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    y.backward(weights)
    assert y.shape == (*x.shape[:-1], OUTPUTS)
    assert own.grad is not None
    found = {"y": y.detach(), "x": own.grad}
    return found | {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


def distances(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Relative, by name."""
    assert found.keys() == expected.keys()
    assert len(found) == 4
    pairs = {name: (found[name].double(), whole.double()) for name, whole in expected.items()}
    return {name: float((a - b).norm() / b.norm().clamp(min=1e-30)) for name, (a, b) in pairs.items()}


class Masked(nn.Module):
    """Dropout with a mask that is given."""

    def __init__(self, mask: Tensor, share: float) -> None:
        super().__init__()
        self._factors = mask / (1 - share)

    def forward(self, x: Tensor) -> Tensor:
        return x * self._factors.to(x.dtype).view(x.shape)


@pytest.mark.parametrize(("kind", "shape", "share"), [*itertools.product(BASES, SHAPES, (0.0, 0.25))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numbers_are_those_of_peft(kind: str, shape: tuple[int, ...], share: float, dtype: torch.dtype) -> None:
    ours, peft = layers(kind, dtype, lora_dropout=share)
    x = inputs(shape, dtype)
    if share:
        torch.manual_seed(SEED)
        _, mask = torch.native_dropout(x.view(-1, INPUTS), share, True)
        peft.lora_dropout["default"] = Masked(mask, share)
    found, expected = results(ours, x), results(peft, x)
    assert {name: each for name, each in distances(found, expected).items() if not each <= TOLERANCE} == {}


@pytest.mark.parametrize(("kind", "dtype"), [*itertools.product(BASES, HALF)], ids=str)
def test_half_formats_are_as_near_to_exact_numbers_as_one_rounding_lets_them(kind: str, dtype: torch.dtype) -> None:
    ours, peft = layers(kind, dtype)
    x = inputs((1300, INPUTS), dtype)
    found, exact = results(ours, x), results(peft.double(), x.double())
    bounds = dict.fromkeys(exact, HALF[dtype]) | {"y": HALF[dtype] * (1 if kind == "linear" else 2)}
    assert {name: each for name, each in distances(found, exact).items() if not each <= bounds[name]} == {}


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradients_of_adapters_are_sums_in_fp32(dtype: torch.dtype) -> None:
    ours, _ = layers("linear", dtype)
    x = inputs((1300, INPUTS), dtype)
    found = results(ours, x)
    low = (x @ ours.lora_A["default"].weight.detach().t()) * ours.scaling["default"]
    gradient = torch.randn(1300, OUTPUTS, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = gradient.t().double() @ low.double()
    of_b = found["lora_B.default.weight"]
    assert of_b.dtype == torch.float32
    assert float((of_b - exact).norm() / exact.norm()) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "shape"), [*itertools.product(("linear", "conv1d"), ((2, 500, INPUTS), (1000, INPUTS)))]
)
def test_an_update_below_the_grid_of_the_base_is_kept(kind: str, shape: tuple[int, ...]) -> None:
    ours, peft = (each.bfloat16() for each in layers(kind))
    x = inputs(shape, torch.bfloat16)
    of_ours, of_peft = (kept(each, x) for each in (ours, peft))
    assert 0.99 <= of_ours <= 1.01, f"{of_ours:.3f} of the update is kept, of PEFT's {of_peft:.3f}"
    assert of_peft < 0.8, f"PEFT keeps {of_peft:.3f}: the update is too large to tell them apart"


@pytest.mark.skipif(find_spec("triton") is None, reason="torch brings Triton on Linux only")
def test_the_kernel_of_a_gpu_rounds_the_sum_once() -> None:
    """Triton's interpreter runs it on the CPU; it has to be asked for before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "from trainer import test_lora_forward; test_lora_forward.compare_kernel()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=240)


def compare_kernel() -> None:
    """In fp16: the interpreter takes bf16 for integers. `make gpu` has bf16."""
    kernel = import_module("finetune_trainer.lora_kernel").rounded_sum
    dtype = torch.float16
    for rows, columns, rank in [(70, 130, 8), (64, 128, 16), (1, 300, 1), (130, 1, 64), (65, 129, 100), (0, 5, 8)]:
        base, low = inputs((rows, columns)), inputs((rows, rank), dtype)
        up = (inputs((rank, columns), dtype) * 0.01).t()
        found, exact = kernel(base, low, up), base.double() + low.double() @ up.double().t()
        assert (found.dtype, found.shape) == (dtype, base.shape)
        assert torch.all((found - exact).abs() <= exact.abs() * HALF[dtype] + 1e-6), (rows, columns, rank)


def test_without_triton_a_gpu_takes_torchs_operations_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "finetune_trainer.lora_kernel", None)
    assert lora_forward._kernel.__wrapped__(torch.device("cpu")) is None
    assert "without Triton" in caplog.text


ELSEWHERE: dict[str, dict[str, Any]] = {
    "adapters in another format": {},
    "autocast": {},
    "disabled": {},
    "merged": {},
    "two adapters": {},
    "a base that is trained": {},
    "DoRA": {"use_dora": True},
    "a bias of B": {"lora_bias": True},
}


@pytest.mark.parametrize("how", ELSEWHERE)
def test_what_it_does_not_compute_peft_computes(how: str) -> None:
    both = layers("linear with bias", **ELSEWHERE[how])
    x = inputs((4, 9, INPUTS), torch.bfloat16 if how.startswith("adapters") else torch.float32)
    found = [_elsewhere(each, how, x) for each in both]
    assert found[0].keys() == found[1].keys()
    assert {name for name, each in found[0].items() if not torch.equal(each, found[1][name])} == set()


def _elsewhere(layer: Any, how: str, x: Tensor) -> dict[str, Tensor]:
    if how.startswith("adapters"):
        layer.get_base_layer().bfloat16()
    elif how == "disabled":
        layer.enable_adapters(False)
    elif how == "merged":
        layer.merge()
    elif how == "two adapters":
        torch.manual_seed(1)
        layer.update_layer("other", 4, lora_alpha=4, config=LoraConfig(init_lora_weights=False))
        layer.set_adapter(["default", "other"])
    elif how.startswith("a base"):
        layer.get_base_layer().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        return results(layer, x)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def test_a_layer_that_is_more_than_linear_is_peft_s() -> None:
    settings = LoraConfig(target_modules=["layer"])
    lora_forward.use(settings, LoraLinear)
    found: Any = get_peft_model(Around(Doubled(4, 4)), settings)
    assert type(found.base_model.model.layer) is lora.Linear


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that records operators by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("wanted", "products"), [(True, 1), (False, 0)])
def test_the_gradient_of_an_input_that_is_not_trained_is_not_computed(wanted: bool, products: int) -> None:
    ours, _ = layers("linear")
    total = ours(inputs((3, INPUTS)).requires_grad_(wanted)).sum()
    with Operators() as operators:
        total.backward()
    assert operators.names.count("addmm_") == products
    assert all((p.grad is not None) == p.requires_grad for p in ours.parameters())


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT, of GPT-2
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("dtype", "share"), [*itertools.product((torch.float32, torch.bfloat16), (0.0, 0.2))], ids=str
)
def test_no_more_is_saved_than_by_peft(kind: str, dtype: torch.dtype, share: float) -> None:
    tokens = torch.arange(3, 67).view(2, 32)
    held = []
    for plain in (False, True):
        built: Any = _attached(kind, share).to(dtype)
        if plain:
            models.with_forward_of_peft(built)
        held.append(activations_work.saved_bytes(built, lambda: built(input_ids=tokens, use_cache=False)))  # noqa: B023
    assert 0 < held[0] <= held[1]
    if share:
        assert held[0] < 0.95 * held[1]


def _attached(kind: str, dropout: float = 0.0) -> PeftModel:
    base = architectures.model(kind)
    base.train()
    return adapters.attach(base, Lora.model_validate(models.lora(dropout=dropout)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_adapter_of_a_model_is_computed_so_and_published_as_peft_does(kind: str, tmp_path: Path) -> None:
    model = _attached(kind)
    model.eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    assert {type(module) for module in model.modules() if hasattr(module, "lora_A")} == {LoraLinear}
    model.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] == (kind == "gpt2")
    again = PeftModel.from_pretrained(architectures.model(kind), tmp_path)
    again.eval()
    assert {type(module) for module in again.modules() if hasattr(module, "lora_A")} == {lora.Linear}
    assert again.state_dict().keys() == model.state_dict().keys() == copy.deepcopy(model).state_dict().keys()
    tokens = torch.arange(3, 67).view(2, 32)
    with torch.no_grad():
        found, expected = (each(input_ids=tokens).logits for each in (copy.deepcopy(model), again))
    assert float((found - expected).norm() / expected.norm()) <= TOLERANCE


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_nothing_waits_for_a_gpu(share: float) -> None:
    ours, _ = layers("linear with bias", lora_dropout=share)
    assert syncs.of(lambda: results(ours, inputs((2, 5, INPUTS)))) == []


def test_every_engine_gets_gradients_that_were_not_rounded_to_bf16() -> None:
    wanted = [
        case for case in cases(Engine.SINGLE, Engine.FSDP2, precision="bf16", per_device=4, steps=1) if case.lora
    ]
    for case, trace in dict(values(run_ranks(1, traces, wanted))[0]).items():
        rounded = [name for name, each in trace.gradients.items() if torch.equal(each, each.bfloat16().float())]
        assert trace.gradients
        assert rounded == [], case
