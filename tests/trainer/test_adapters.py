"""The settings of adapters: against PEFT's layers, the same on every layout, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, DeepseekV3Config, Lfm2Config, LlamaForCausalLM

from finetune_api.runtime.choices import Engine, LoraInit, Method, Precision
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters
from finetune_trainer.errors import ModelRefused
from trainer import models, qlora_work
from trainer.qlora_work import ADAPTERS, SAME, Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
LONGEST = 24
KINDS = [kind for kind in ADAPTERS if kind]
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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ("q_porj",)}, "the model has no module q_porj; its linear modules are down_proj, gate_proj"),
    ({"target_modules": (r".*\.q_porj",)}, r"the model has no module .*\.q_porj; its linear modules are"),
    ({"target_modules": ("(q_proj",)}, r"(q_proj is no regular expression: missing ), unterminated subpattern"),
    (
        {"layers": (1, 4)},
        "layers_to_transform: layer 4 of the model has no target module; there are layers 0, 1, 2, 3",
    ),
    (
        {"layers": (2,), "target_modules": ("q_proj", r".*\.1\..*v_proj")},
        r"layers_to_transform: .*\.1\..*v_proj is in layer 1 only",
    ),
    ({"dora": True, "target_modules": ("q_proj", "lm_head")}, "use_dora: the output head computes in parts"),
    ({"rank_pattern": (("q_porj", 8),)}, "rank_pattern: q_porj is of no module that gets an adapter"),
    ({"rank_pattern": (("q_proj", 8), (r".*\.q_proj", 4))}, r"rank_pattern: .*\.q_proj is of no module that gets an"),
    ({"alpha_pattern": (("(q", 8.0),)}, "alpha_pattern: (q is no regular expression: missing )"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_names_no_module_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(models.llama(), Lora(**models.lora(**changes)))
    assert message in str(refused.value)
    assert str(refused.value).startswith("training.lora.")


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
    message = "use_dora: model.layers.2.mlp.up_proj have rows of zeros"
    with pytest.raises(ModelRefused, match=message):
        adapted(folder, "lora")
    with pytest.raises(ModelRefused, match=message):
        adapted(folder, "qlora")


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


def adapted(folder: Path, method: str) -> PeftModel:
    quantisation = {"format": "nf4", "double": False} if method == "qlora" else None
    wanted = models.run_config(
        folder, Path("rows"), Path("output"), method=method, lora=models.lora(dora=True), quantisation=quantisation
    )
    return adapters.attach(models.loaded(folder, wanted), Lora(**models.lora(dora=True)))


def test_gaussian_begins_with_a_deviation_of_one_by_the_rank() -> None:
    adapted = adapters.attach(models.llama(), Lora(**models.lora(rank=16, init=LoraInit.GAUSSIAN)))
    first = adapted.get_parameter("base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight")
    assert float(first.detach().std()) == pytest.approx(1 / 16, rel=0.05)
