"""Adapters on the experts of a mixture: against PEFT's wrappers, the same on every layout, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import AutoConfig

from finetune_api.runtime.choices import Engine, Precision
from finetune_api.runtime.run_config import Lora, RunConfig
from finetune_trainer import (
    adapter_folder,
    adapters,
    architecture,
    fused_forward,
    merging,
    scope,
    target_parameters,
    tensor_files,
)
from finetune_trainer.errors import ModelRefused
from finetune_trainer.fused_forward import FusedLora, LowRankSum
from trainer import architectures, models, resume_work, trainer_work
from trainer import result_work as results
from trainer import target_parameters_work as work
from trainer.modules_to_save_work import loaded
from trainer.qlora_work import Run, far
from trainer.ranks import run_ranks, values
from trainer.target_parameters_work import ADAPTERS, EXPERTS, Job

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
ALONE = [Job(adapter) for adapter in ADAPTERS]
BOTH = (Engine.DDP, Engine.FSDP2)
RECOMPUTED = Job(recompute=True)
SPREAD = [replace(job, engine=engine) for job in (ALONE[0], ALONE[3], RECOMPUTED) for engine in BOTH]
BF16 = replace(ALONE[0], precision=Precision.BF16)
SPREAD_BF16 = [replace(BF16, engine=engine) for engine in BOTH]
UNSYNCED = [replace(ALONE[0], engine=engine, synced=False) for engine in BOTH]
WORLDS = {
    1: [*ALONE, RECOMPUTED, BF16, *(replace(job, plain=True) for job in ALONE)],
    2: [*SPREAD, *SPREAD_BF16, *UNSYNCED],
}
"""Jobs by number of ranks."""
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "phimoe", "ernie4_5_moe", "minimax")
"""gpt-oss stores its matrices transposed, and has biases beside them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(work.mixture(), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    whole: dict[str, Run] = {}
    for world, jobs in WORLDS.items():
        first, *others = values(run_ranks(world, work.runs, folder, jobs))
        assert all(other[name].losses == first[name].losses for other in others for name in first)
        whole |= first
    return whole


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_wrappers_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert len(ours.losses) == work.STEPS
    assert far(ours.losses, plain.losses) <= LOSS


def test_settings_differ(found: dict[str, Run]) -> None:
    assert len({tuple(found[str(job)].losses[1:]) for job in ALONE}) == len(ALONE)


def test_recomputed_activations_change_no_bit(found: dict[str, Run]) -> None:
    assert found[str(RECOMPUTED)].losses == found[str(ALONE[0])].losses


@pytest.mark.parametrize("job", SPREAD, ids=str)
def test_every_layout_trains_alike(found: dict[str, Run], job: Job) -> None:
    run, alone = found[str(job)], found[str(replace(job, engine=Engine.SINGLE))]
    assert run.evaluations == alone.evaluations, "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= LOSS


@pytest.mark.parametrize("job", SPREAD_BF16, ids=str)
def test_in_bf16_every_layout_trains_alike_to_its_roundings(found: dict[str, Run], job: Job) -> None:
    run, alone, exact = found[str(job)], found[str(BF16)], found[str(ALONE[0])]
    assert run.evaluations == alone.evaluations, "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= 2e-3 * max(alone.losses)
    assert far(run.losses, exact.losses) <= 0.02


@pytest.mark.parametrize("job", UNSYNCED, ids=str)
def test_without_sums_of_gradients_it_is_another(found: dict[str, Run], job: Job) -> None:
    assert far(found[str(job)].losses, found[str(ALONE[0])].losses) > 10 * LOSS


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_plain_peft_loads_the_result(tmp_path: Path, adapter: str) -> None:
    [(ours, plain)] = values(run_ranks(1, work.published, tmp_path / "base", tmp_path, "qwen3_moe", adapter))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


@pytest.mark.parametrize("kind", [kind for kind in MIXTURES if kind != "qwen3_moe"])
def test_plain_peft_loads_the_result_of_other_mixtures(tmp_path: Path, kind: str) -> None:
    [(ours, plain)] = values(run_ranks(1, work.published, tmp_path / "base", tmp_path, kind, "experts and layers"))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_no_implementation_of_experts_needs_a_weight_of_all(
    monkeypatch: pytest.MonkeyPatch, kind: str, implementation: str
) -> None:
    base: Any = architectures.model(kind)
    base.set_experts_implementation(implementation)
    lora = Lora(**models.lora(rank=3, target_parameters=EXPERTS))
    adapted = work.with_b(adapters.attach, base, lora)
    assert with_wrappers_of_peft(adapted) == 2 * 2, "two parameters in each of two layers"
    expected, wanted = gradients(adapted)
    fused_forward.use(adapted)
    monkeypatch.delattr(LowRankSum, "whole")
    logits, found = gradients(adapted)
    assert torch.allclose(logits, expected, atol=1e-6)
    assert all((found[name] - wanted[name]).norm() <= 1e-5 * wanted[name].norm() for name in wanted)
    assert found.keys() == {name for name, p in adapted.named_parameters() if p.requires_grad}


def with_wrappers_of_peft(model: PeftModel) -> int:
    """Returns how many there are."""
    ours = [module for module in model.modules() if type(module) is FusedLora]
    for module in ours:
        module.__class__ = ParamWrapper  # type: ignore[assignment]
    return len(ours)


def gradients(model: PeftModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss by parameter."""
    model.zero_grad()
    logits = model(input_ids=results.TOKENS).logits
    logits.square().mean().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return logits.detach(), {name: gradient for name, gradient in trained.items() if gradient is not None}


SUM = LowRankSum(
    torch.randn((4, 6, 8), generator=torch.Generator().manual_seed(5)),
    torch.randn((4, 6, 4), generator=torch.Generator().manual_seed(6)),
    torch.randn((4, 4, 8), generator=torch.Generator().manual_seed(7)),
    0.5,
)
X = torch.randn((4, 3, 8), generator=torch.Generator().manual_seed(6))
USES: dict[str, Any] = {
    "a product from the left": lambda weight: weight @ X.mT,
    "a product from the right": lambda weight: X @ weight.mT,
    "bmm": lambda weight: torch.bmm(X, weight.transpose(1, 2)),
    "a linear layer of one matrix": lambda weight: torch.nn.functional.linear(X[0], weight[1], torch.ones(6)),
    "matrices one by one": lambda weight: torch.stack([X[0] @ each.T for each in weight]),
    "matrices by a mask": lambda weight: X[[0, 2]] @ weight[torch.tensor([True, False, True, False])].mT,
    "a row of a matrix": lambda weight: weight[2][1] + weight[0, 3],
    "another order of dimensions": lambda weight: weight.permute(2, 0, 1).reshape(-1),
    "an outer transposition": lambda weight: weight.transpose(0, 2),
    "einsum": lambda weight: torch.einsum("eoi,eri->ero", weight, X),
    "a sum and a product with numbers": lambda weight: 2 * weight + 1,
    "its size": lambda weight: torch.tensor([*weight.shape, weight.ndim, len(weight), weight.size(1)]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_whatever_is_done_to_the_sum_gives_what_its_numbers_would_give(use: Any) -> None:
    assert torch.allclose(use(SUM), use(SUM.base + 0.5 * SUM.left @ SUM.right), atol=1e-5)


def test_in_bf16_an_update_below_the_grid_of_the_weights_is_seen() -> None:
    """The numbers of PEFT's wrapper are those of the base."""
    generator = torch.Generator().manual_seed(7)
    base, half = torch.ones(1, 16, 64), torch.randn(5, 32, generator=generator)
    left, right = (torch.randn(shape, generator=generator) * 0.01 for shape in ((1, 16, 8), (1, 8, 64)))
    found = LowRankSum(base.bfloat16(), left.bfloat16(), right.bfloat16(), 1.0)
    x = torch.cat([half, -half], dim=1)
    assert torch.equal(found.whole().float(), base)
    exact = x.bfloat16().float() @ (found.left.float() @ found.right.float()).mT
    seen = torch.matmul(x.bfloat16(), found.mT).float()  # type: ignore[arg-type]
    assert float((seen - exact).norm()) <= 0.02 * float(exact.norm())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.save(work.mixture(), folder / "model")
    models.dataset(folder / "rows.jsonl", 12)
    models.dataset(folder / "held-out.jsonl", 5, seed=500)
    return folder


def config(inputs: Path, output: Path, adapter: str, changes: dict[str, Any]) -> RunConfig:
    """Six steps, with a checkpoint every second one."""
    usual: dict[str, Any] = {
        "method": "lora", "lora": models.lora(**ADAPTERS[adapter][0]), "optimizer__learning_rate": 4e-3,
        "checkpointing": {"every_steps": 2, "keep": 9}, "data__validation": str(inputs / "held-out.jsonl"),
        "validation": {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False},
    }  # fmt: skip
    return models.run_config(inputs / "model", inputs / "rows.jsonl", output, **(usual | changes))


BOTH_KINDS = "experts and layers"
ONE: dict[str, Any] = {"engine": "single"}
TWO: dict[str, Any] = {
    "mesh__processes_per_node": 2, "mesh__data_parallel": 2, "batch": {"per_device": 1, "accumulation": 2},
}  # fmt: skip
LAYOUTS = {"single": ONE, "ddp": {"engine": "ddp", **TWO}, "fsdp2": {"engine": "fsdp2", **TWO}}


def run(settings: RunConfig, ranks: int = 1) -> Any:
    return values(run_ranks(ranks, trainer_work.run_on_ranks, settings))[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_resumes_to_the_same_bits_and_its_merged_model_is_its_adapter_in_peft(
    tmp_path: Path, inputs: Path, layout: str
) -> None:
    changes = LAYOUTS[layout] | {"merge": True}
    ranks = changes.get("mesh__data_parallel", 1)
    whole, again = tmp_path / "whole", tmp_path / "again"
    run(config(inputs, whole, BOTH_KINDS, changes), ranks)
    shutil.copytree(whole, again, ignore=lambda folder, names: {"result", "report.json", "records.jsonl"} & {*names})
    newest = sorted((again / "checkpoints").iterdir(), key=lambda each: int(each.name.rpartition("-")[2]))
    for checkpoint in newest[1:]:
        shutil.rmtree(checkpoint)
    run(config(inputs, again, BOTH_KINDS, changes), ranks)
    assert resume_work.resumed_from(again) == 2
    for name in ("adapter_model.safetensors", "adapter_config.json", "merged/model.safetensors"):
        assert (again / "result" / name).read_bytes() == (whole / "result" / name).read_bytes(), name
    base = loaded(inputs / "model")
    plain = results.logits(base)
    adapted = results.logits(PeftModel.from_pretrained(base, str(whole / "result")))
    merged = results.logits(loaded(whole / "result" / "merged"))
    assert float((merged - adapted).abs().max()) <= 1e-4
    assert float((merged - plain).abs().max()) > 1e-2


@pytest.mark.parametrize("adapter", ["experts and layers", "one of two", "ranks of a layer"])
def test_training_continues_where_the_adapter_is(tmp_path: Path, inputs: Path, adapter: str) -> None:
    first = run(config(inputs, tmp_path / "first", adapter, {}))
    from_it = {"lora": models.lora(rank=16, alpha=32.0, source=str(tmp_path / "first"))}
    second = run(config(inputs, tmp_path / "second", adapter, from_it))
    assert second.metrics["val.loss.initial"] == pytest.approx(first.metrics["val.loss"], rel=1e-6)
    assert second.metrics["val.loss"] < first.metrics["val.loss"] < first.metrics["val.loss.initial"]
    names = [{n: t.shape for n, t in tensors(tmp_path / each).items()} for each in ("first", "second")]
    assert names[0] == names[1]
    keys = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_parameters", "target_modules")
    both = [json.loads((tmp_path / each / "result/adapter_config.json").read_text()) for each in ("first", "second")]
    assert [both[0][key] for key in keys] == [both[1][key] for key in keys]


def tensors(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / "result" / "adapter_model.safetensors")


def plain_adapter(base: Path, folder: Path, adapter: str = "experts and layers", **changes: Any) -> Any:
    """An adapter of plain PEFT with random factors, saved in `folder`."""
    wanted: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **ADAPTERS[adapter][1], **changes}
    model = get_peft_model(loaded(base), LoraConfig(**wanted))
    results.disturb(model)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_that_peft_has_written_is_continued(inputs: Path, tmp_path: Path, adapter: str) -> None:
    theirs = plain_adapter(inputs / "model", tmp_path / "theirs", adapter)
    lora = adapter_folder.continued(Lora(**models.lora(source="theirs")), tmp_path / "theirs")
    ours = adapters.attach(loaded(inputs / "model"), lora)
    adapters.take_values(ours, tmp_path / "theirs", lambda weight: weight)
    assert torch.allclose(results.logits(ours), results.logits(theirs), atol=1e-6)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("adapter", [{}, {"target_parameters": ["experts.down_proj"]}], ids=["both", "one of two"])
def test_a_merged_mixture_computes_what_base_and_adapter_compute_in_peft(
    tmp_path: Path, kind: str, adapter: dict[str, Any]
) -> None:
    """Tensors of the files are those of single experts in some."""
    architectures.model(kind).save_pretrained(tmp_path / "base")
    theirs = plain_adapter(tmp_path / "base", tmp_path / "adapter", **adapter)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert float((results.logits(merged) - results.logits(theirs)).abs().max()) <= 1e-4
    assert tensor_files.outlines(tmp_path / "merged") == tensor_files.outlines(tmp_path / "base")


NAMED: dict[str, Any] = {"target_modules": ("q_proj",), "target_parameters": ("experts.down_proj",)}
ONLY = (
    "which PEFT has for modules only, and training.lora.target_parameters asks for adapters on parameters"
)  # fmt: skip
KNOWN = "name some of experts.down_proj, experts.gate_up_proj"
REFUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        {"dropout": 0.1},
        f"dropout: 0.1 drops inputs of A, {ONLY}; set dropout to 0, or leave target_parameters out",
        {"dropout": 0.0},
    ),
    (
        {"dora": True},
        f"use_dora: true trains lengths of rows, {ONLY}; set use_dora to false, or leave target_parameters out",
        {"dora": True, "target_parameters": ()},
    ),
    (
        {"target_parameters": ("experts.down_porj",)},
        f"target_parameters: the model has no parameter experts.down_porj (did you mean experts.down_proj?); {KNOWN}",
        {},
    ),
    (
        {"target_parameters": ("experts.down_proj", "w2")},
        f"target_parameters: the model has no parameter w2; {KNOWN}",
        {"target_parameters": ("down_proj",)},
    ),
    (
        {"target_parameters": ("q_proj.weight",)},
        "target_parameters: q_proj.weight is the weight of a linear layer; name q_proj in training.lora.target_mo",
        {"target_modules": ("q_proj",)},
    ),
    (
        {"target_parameters": ("gate.weight",)},
        "target_parameters: model.layers.0.mlp.gate.weight has 4 x 64 numbers, and not a matrix for each expert",
        {},
    ),
    (
        {"target_parameters": ("mlp.experts",)},
        "target_parameters: mlp.experts is a module; name its parameters: experts.down_proj, experts.gate_up_proj",
        {"target_parameters": ("mlp.experts.gate_up_proj",)},
    ),
    (
        {"target_parameters": (r".*\.down_proj",)},
        r"target_parameters: .*\.down_proj is no end of a name, and PEFT reads no expressions here; name some of",
        {},
    ),
    (
        {"layers": (1, 7)},
        "layers_to_transform: layer 7 of the model has no target module; there are layers 0, 1",
        {"layers": (1,)},
    ),
    (
        {"rank_pattern": (("experts.up_proj", 2),)},
        "rank_pattern: experts.up_proj is of no module that gets an adapter",
        {"rank_pattern": (("experts.down_proj", 2),)},
    ),
    (
        {"modules_to_save": ("mlp.experts",)},
        "modules_to_save: every layer that training.lora.target_parameters has for experts.down_proj is trained in",
        {"modules_to_save": ("layers.1.mlp.experts",)},
    ),
    (
        {"target_modules": (), "target_parameters": ()},
        "target_modules: it is empty, and nothing else is named; name layers, or parameters in target_parameters",
        {"target_modules": ()},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message", "mended"), REFUSED, ids=[message[:50] for _, message, _ in REFUSED])
def test_what_parameters_cannot_have_is_refused(
    changes: dict[str, Any], message: str, mended: dict[str, Any]
) -> None:
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(architectures.model("qwen3_moe"), Lora(**models.lora(**NAMED | changes)))
    assert str(refused.value).startswith(f"training.lora.{message}")
    adapters.attach(architectures.model("qwen3_moe"), Lora(**models.lora(**NAMED | mended)))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("llama", "down_proj", "the model has no parameter down_proj; llama has none of three dimensions"),
        ("gpt_oss", "experts.gate_up_proj_bias", "gate_up_proj_bias has 4 x 192 numbers, and not a matrix for each"),
    ],
)
def test_other_models_say_what_they_have(kind: str, name: str, message: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(architectures.model(kind), Lora(**models.lora(target_parameters=(name,))))
    assert str(refused.value).startswith("training.lora.target_parameters: ")
    assert message in str(refused.value)


def test_a_pattern_that_holds_is_not_said_to_be_ignored() -> None:
    lora = Lora(**models.lora(**NAMED, rank_pattern=(("experts.down_proj", 2),)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted: Any = adapters.attach(architectures.model("qwen3_moe"), lora)
    assert adapted.get_submodule("base_model.model.model.layers.0.mlp.experts").r == {"default": 2}
    assert not [each for each in said if "were ignored" in str(each.message)]


def test_a_start_that_needs_a_linear_layer_is_refused() -> None:
    lora = Lora(**models.lora(**NAMED, init="pissa"))
    with pytest.raises(ModelRefused, match=r"^training.lora.init_lora_weights: pissa needs a linear layer, which"):
        adapters.attach(architectures.model("qwen3_moe"), lora)


def test_dropout_beside_an_adapter_with_parameters_is_refused(inputs: Path, tmp_path: Path) -> None:
    plain_adapter(inputs / "model", tmp_path / "theirs")
    lora = adapter_folder.continued(Lora(**models.lora(source="theirs", dropout=0.1)), tmp_path / "theirs")
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(loaded(inputs / "model"), lora)
    assert "the adapter of training.lora.from has adapters on parameters; set dropout to 0" in str(refused.value)


def _without_factors(folder: Path, part: str) -> None:
    path = folder / "adapter_model.safetensors"
    kept = {name: t for name, t in safetensors.torch.load_file(path).items() if part not in name}
    safetensors.torch.save_file(kept, path)


def _add(folder: Path, name: str) -> None:
    path = folder / "adapter_model.safetensors"
    more = {f"base_model.model.{name}": torch.ones(4)}
    safetensors.torch.save_file(safetensors.torch.load_file(path) | more, path)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SPOILT: dict[str, tuple[Any, str]] = {
    "a wrapper is missing": (
        lambda folder: _without_factors(folder, "layers.1.mlp.experts.base_layer"),
        "model.layers.1.mlp.experts has 1 adapters on parameters, and 2 parameters that they can be of",
    ),
    "a layer is missing": (
        lambda folder: _without_factors(folder, "layers.1.mlp.experts"),
        "its target_parameters name model.layers.1.mlp.experts.gate_up_proj, and its file has no factors for that",
    ),
    "another rank": (
        lambda folder: _config(folder, rank_pattern={"experts.down_proj": 2}),
        "model.layers.0.mlp.experts.down_proj has factors [16, 32] and [64, 16] there, and 4 matrices with the rank",
    ),
    "names that are none": (
        lambda folder: _config(folder, target_parameters=[3]),
        "adapter_config.json: target_parameters is no list of names",
    ),
    "an expression of modules": (
        lambda folder: _config(folder, target_modules="(.*.*.*.*.*.*)*X"),
        "target_modules is an expression beside target_parameters, and is read as a list only",
    ),
    "a rank that is no whole number": (lambda folder: _config(folder, r=4.0), "has the rank 4.0 there, which is no"),
    "magnitudes of experts": (
        lambda folder: _add(folder, "model.layers.0.mlp.experts.lora_magnitude_vector"),
        "model.layers.0.mlp.experts is of a parameter and has magnitudes, which only layers have",
    ),
    "a name without end": (
        lambda folder: _add(folder, f"{'a.' * 600}lora_A.weight"),
        "has a tensor with a name of 1,230 characters; take the file",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_adapter_whose_files_do_not_belong_together_is_refused(inputs: Path, tmp_path: Path, case: str) -> None:
    spoil, message = SPOILT[case]
    plain_adapter(inputs / "model", tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    lora = Lora(**models.lora(source="theirs", folder=str(tmp_path / "theirs"), target_parameters=EXPERTS))
    with pytest.raises(ModelRefused) as continued:
        adapters.attach(loaded(inputs / "model"), lora)
    assert message in str(continued.value)
    with pytest.raises(ModelRefused) as merged:
        merging.run(tmp_path / "theirs", tmp_path / "merged", str(inputs / "model"))
    assert message in str(merged.value)
    assert str(tmp_path / "theirs") in str(merged.value)


def test_one_text_may_be_of_layers_and_of_parameters() -> None:
    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16,
             "shared_expert_intermediate_size": 16}  # fmt: skip
    settings = AutoConfig.for_model("qwen2_moe", **sizes)
    base: Any = architecture.auto_class(settings).from_config(settings)
    lora = {"target_modules": ("q_proj", "down_proj"), "target_parameters": ("down_proj",)}
    adapters.attach(base, Lora(**models.lora(**lora)))
    names = {".".join(name.split(".")[3:]) for name in target_parameters.adapted(base)}
    assert names == {"self_attn.q_proj", "mlp.shared_expert.down_proj", "mlp.experts.down_proj"}


def test_parameters_of_three_dimensions_that_are_no_experts_get_no_adapters() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time_mix = nn.Parameter(torch.zeros(1, 1, 8))
            self.output = nn.Linear(8, 8)

    model = models.llama()
    model.model.layers[0].mlp.mixer = Mixer()
    assert target_parameters.fused(model) == {}


def test_what_is_trained_is_said_by_the_names_of_parameters(inputs: Path) -> None:
    base = loaded(inputs / "model")
    adapted = adapters.attach(base, Lora(**models.lora(**NAMED)))
    assert "adapters are on down_proj, q_proj; no adapters are on" in scope.sentence(adapted)
    others = {f"model.layers.{i}.mlp.experts.gate_up_proj" for i in (0, 1)}
    assert {name for name in adapters.missed(base) if "experts" in name} == others


def test_with_adapters_on_all_experts_the_routers_alone_have_none(inputs: Path) -> None:
    base = loaded(inputs / "model")
    adapters.attach(base, Lora(**models.lora(target_parameters=EXPERTS)))
    assert adapters.missed(base).keys() == {f"model.layers.{i}.mlp.gate.weight" for i in (0, 1)}
