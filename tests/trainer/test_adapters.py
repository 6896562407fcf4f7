"""The settings of adapters: against PEFT's layers, the same on every layout, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, DeepseekV3Config, Lfm2Config, LlamaForCausalLM

from finetune_api.runtime.choices import Engine, LoraInit, Method, Precision
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapter_folder, adapters
from finetune_trainer.errors import ModelRefused
from finetune_trainer.expressions import Expressions
from trainer import architectures, models, qlora_work
from trainer.qlora_work import SAME, Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
LONGEST = 24
KINDS = ["dora", "rslora", "patterns", "expression", "layers"]
LORA = [Job(method=Method.LORA, adapter=kind, steps=5) for kind in KINDS]
DORA = [Job(method=method, adapter="dora") for method in (Method.LORA, Method.QLORA)]
BF16 = replace(DORA[0], precision=Precision.BF16)
SPREAD = [replace(job, engine=engine) for job in [*DORA, BF16] for engine in (Engine.DDP, Engine.FSDP2)]
UNSYNCED = [replace(DORA[0], engine=engine, synced=False, steps=3) for engine in (Engine.DDP, Engine.FSDP2)]
HYBRID = [replace(job, engine=Engine.HSDP) for job in DORA]
WORLDS = {
    1: [*LORA, *DORA, BF16, *(replace(job, plain=True) for job in [*LORA, *DORA])],
    2: [*SPREAD, *UNSYNCED],
    4: HYBRID,
}
"""Jobs by number of ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


@pytest.mark.parametrize("job", [*LORA, *DORA], ids=str)
def test_layers_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert far(ours.losses, plain.losses) <= (LOSS if job.method is Method.LORA else 1e-4)


def test_settings_differ(found: dict[str, Run]) -> None:
    assert len({tuple(found[str(job)].losses) for job in LORA}) == len(LORA)


@pytest.mark.parametrize("job", [*SPREAD[:4], *HYBRID], ids=str)
def test_dora_is_the_same_on_every_layout(found: dict[str, Run], job: Job) -> None:
    run, alone = found[str(job)], found[str(replace(job, engine=Engine.SINGLE))]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= LOSS
    assert far(run.evaluations, alone.evaluations) <= LOSS * len(SAME) * LONGEST


@pytest.mark.parametrize("job", SPREAD[4:], ids=str)
def test_dora_in_bf16_is_the_same_on_every_layout_to_its_roundings(found: dict[str, Run], job: Job) -> None:
    run, alone, exact = found[str(job)], found[str(BF16)], found[str(DORA[0])]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= 2e-3 * max(alone.losses)
    assert far(run.losses, exact.losses) <= 0.02


@pytest.mark.parametrize("job", UNSYNCED, ids=str)
def test_without_sums_of_gradients_it_is_another(found: dict[str, Run], job: Job) -> None:
    assert far(found[str(job)].losses, found[str(DORA[0])].losses[:3]) > 10 * LOSS


@pytest.mark.parametrize("job", [*LORA, DORA[1]], ids=str)
def test_plain_peft_loads_the_result(tmp_path: Path, folder: Path, job: Job) -> None:
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, folder, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


REFUSED: list[tuple[dict[str, Any], str, str, dict[str, Any]]] = [
    (
        {"target_modules": ("q_porj",)},
        "the model has no module q_porj (did you mean q_proj?); its linear modules are down_proj, gate_proj",
        "name some of these, or set all-linear",
        {"target_modules": ("q_proj",)},
    ),
    (
        {"target_modules": (r".*\.q_porj",)},
        r"the model has no module .*\.q_porj (did you mean q_proj?); its linear modules are",
        "name some of these, or set all-linear",
        {"target_modules": ("all-linear",)},
    ),
    (
        {"target_modules": ("(q_proj",)},
        r"(q_proj is no regular expression: missing ), unterminated subpattern",
        "correct it, or write the end of a name",
        {"target_modules": ("q_proj",)},
    ),
    (
        {"layers": (1, 4)},
        "layers_to_transform: layer 4 of the model has no target module; there are layers 0, 1, 2, 3",
        "correct the numbers, or leave the key out to adapt all",
        {"layers": (1, 3)},
    ),
    (
        {"layers": (2,), "target_modules": ("q_proj", r".*\.1\..*v_proj")},
        r"layers_to_transform: .*\.1\..*v_proj is in layer 1 only",
        "name one of them, or leave it out of training.lora.target_modules",
        {"layers": (1, 2), "target_modules": ("q_proj", r".*\.1\..*v_proj")},
    ),
    (
        {"dora": True, "target_modules": ("q_proj", "lm_head")},
        "use_dora: the output head computes in parts",
        "leave the head out of training.lora.target_modules, or set use_dora to false",
        {"dora": True, "target_modules": ("q_proj",)},
    ),
    (
        {"rank_pattern": (("q_porj", 8),)},
        "rank_pattern: q_porj is of no module that gets an adapter",
        "correct the pattern, or remove it",
        {"rank_pattern": (("q_proj", 8),)},
    ),
    (
        {"rank_pattern": (("q_proj", 8), (r".*\.q_proj", 4))},
        r"rank_pattern: .*\.q_proj is of no module that gets an",
        "correct the pattern, or remove it",
        {"rank_pattern": (("q_proj", 8),)},
    ),
    (
        {"alpha_pattern": (("(q", 8.0),)},
        "alpha_pattern: (q is no regular expression: missing )",
        "correct it, or write the end of a name",
        {"alpha_pattern": (("q_proj", 8.0),)},
    ),
]
"""Settings, the reason, the remedy, and settings as it says."""


@pytest.mark.parametrize(("changes", "reason", "remedy", "mended"), REFUSED, ids=[each[1][:40] for each in REFUSED])
def test_what_names_no_module_is_refused(
    changes: dict[str, Any], reason: str, remedy: str, mended: dict[str, Any]
) -> None:
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(models.llama(), Lora(**models.lora(**changes)))
    assert reason in str(refused.value)
    assert str(refused.value).endswith(remedy)
    assert str(refused.value).startswith("training.lora.")
    adapters.attach(models.llama(), Lora(**models.lora(**mended)))


def test_all_linear_is_one_target_beside_others() -> None:
    whole, both = (
        adapters._targets(models.llama(), Lora(**models.lora(target_modules=targets)))
        for targets in (("all-linear",), ("all-linear", "lm_head"))
    )
    assert sorted(both) == sorted([*whole, "lm_head"])


def test_an_expression_that_takes_for_ever_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "Expressions", lambda: Expressions(0.2))
    with pytest.raises(ModelRefused, match=r"target_modules: .* is no regular expression: it takes too long"):
        adapters.attach(models.llama(), Lora(**models.lora(target_modules=("(?:.*?[._]?){20}[A-Z]",))))


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("target", ["gate_up_proj", "experts.down_proj"])
def test_dora_on_experts_in_one_parameter_is_refused(kind: str, target: str) -> None:
    base = architectures.model(kind)
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(base, Lora(**models.lora(dora=True, target_modules=("q_proj", target))))
    reason = f"experts, whose weights transformers keeps in one parameter for all, are no modules: {target};"
    assert str(refused.value).startswith(f"training.lora.target_modules: {reason}")
    known = "its linear modules are k_proj, lm_head, o_proj, q_proj, v_proj"
    parameters = "experts.down_proj, experts.gate_up_proj in training.lora.target_parameters"
    assert str(refused.value).endswith(f"{known}; name some of these, or set all-linear; or name {parameters}")
    adapters.attach(base, Lora(**models.lora(dora=True)))


def test_an_adapter_with_dora_that_cannot_be_continued_is_refused_by_its_name(tmp_path: Path) -> None:
    """No key of adapters may stand beside from, so none is named as the way out."""
    base = models.llama()
    theirs = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "lm_head"])
    get_peft_model(base, theirs).save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    lora = adapter_folder.continued(Lora(**models.lora(source="pvc://adapters/one")), tmp_path / "adapter")
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(models.llama(), lora)
    assert str(refused.value).startswith("training.lora.from: the output head computes in parts")
    assert f"name another adapter than {tmp_path / 'adapter'}, which has DoRA" in str(refused.value)
    assert "use_dora" not in str(refused.value)


def test_an_expression_that_means_experts_is_refused() -> None:
    """PEFT would adapt all experts of the third layer, and not the first two layers."""
    settings = DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=3,
        first_k_dense_replace=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
        num_attention_heads=2, num_key_value_heads=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(settings)  # type: ignore[no-untyped-call]
    with pytest.raises(ModelRefused, match="experts, whose weights transformers keeps in one parameter for all"):
        adapters.attach(base, Lora(**models.lora(target_modules=(r".*\.[01]\.mlp\.(gate|up|down)_proj",))))


def test_a_row_of_zeros_has_no_direction(tmp_path: Path) -> None:
    folder = models.model_folder(tmp_path / "model")
    base = LlamaForCausalLM.from_pretrained(folder)
    base.get_parameter("model.layers.2.mlp.up_proj.weight").data[3] = 0
    base.save_pretrained(folder)
    message = "use_dora: model.layers.2.mlp.up_proj have rows of zeros.*; leave them out of training.lora.target_mod"
    with pytest.raises(ModelRefused, match=message):
        adapted(folder, "lora")
    with pytest.raises(ModelRefused, match=message):
        adapted(folder, "qlora")
    adapted(folder, "qlora", target_modules=("q_proj", r".*layers\.[013]\.mlp\.up_proj"))


def test_lengths_of_layers_that_are_not_quantised_are_measured_too(tmp_path: Path) -> None:
    settings = Lfm2Config(
        vocab_size=1024, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], bos_token_id=None, eos_token_id=257,
        pad_token_id=257,
    )  # fmt: skip
    folder = models.model_folder(tmp_path / "model")
    base = AutoModelForCausalLM.from_config(settings)  # type: ignore[no-untyped-call]
    base.save_pretrained(folder)
    found = adapted(folder, "qlora")
    [(name, magnitude)] = [(n, p) for n, p in found.named_parameters() if "conv.in_proj.lora_magnitude_vector" in n]
    assert "base_model.model.model.layers.0." in name
    whole = base.get_parameter("model.layers.0.conv.in_proj.weight").detach()
    assert torch.equal(magnitude.detach(), whole.norm(dim=1))


def adapted(folder: Path, method: str, **changes: Any) -> PeftModel:
    lora = models.lora(dora=True, **changes)
    quantisation = {"format": "nf4", "double": False} if method == "qlora" else None
    wanted = models.run_config(
        folder, Path("rows"), Path("output"), method=method, lora=lora, quantisation=quantisation
    )
    return adapters.attach(models.loaded(folder, wanted), Lora(**lora))


def test_gaussian_begins_with_a_deviation_of_one_by_the_rank() -> None:
    adapted = adapters.attach(models.llama(), Lora(**models.lora(rank=16, init=LoraInit.GAUSSIAN)))
    first = adapted.get_parameter("base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight")
    assert float(first.detach().std()) == pytest.approx(1 / 16, rel=0.05)
