"""Modules that are trained in full beside adapters: against PEFT's, the same on every layout, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from finetune_api.runtime.choices import Engine, Method, Precision
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapters, whole_modules
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models, modules_to_save_work, qlora_work
from trainer.qlora_work import Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
LORA = models.lora(modules_to_save=("embed_tokens", "lm_head", "layers.1.mlp.up_proj"))
ENDS = Job(method=Method.LORA, adapter="ends")
NORMS = Job(method=Method.LORA, adapter="norms and a layer")
FP32 = [ENDS, NORMS, replace(ENDS, adapter="dora and ends")]
QUANTISED = [replace(job, method=Method.QLORA) for job in FP32]
BF16 = replace(ENDS, precision=Precision.BF16)
ALONE = [*FP32, *QUANTISED]
SHARDED = [ENDS, QUANTISED[0], QUANTISED[1]]
SPREAD = [replace(job, engine=engine) for job in SHARDED for engine in (Engine.DDP, Engine.FSDP2)]
SPREAD_BF16 = [replace(BF16, engine=engine) for engine in (Engine.DDP, Engine.FSDP2)]
UNSYNCED = [replace(ENDS, engine=engine, synced=False, steps=3) for engine in (Engine.DDP, Engine.FSDP2)]
HYBRID = [replace(job, engine=Engine.HSDP) for job in SHARDED]
WORLDS = {
    1: [*ALONE, BF16, *(replace(job, plain=True) for job in ALONE)],
    2: [*SPREAD, *SPREAD_BF16, *UNSYNCED],
    4: HYBRID,
}
"""Jobs by number of ranks."""
TIED_WORLDS = {
    1: [ENDS, QUANTISED[0], replace(ENDS, plain=True), replace(QUANTISED[0], plain=True)],
    2: [replace(ENDS, engine=Engine.DDP), replace(ENDS, engine=Engine.FSDP2)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("base") / "model", layers=2)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("tied") / "model", tied=True, layers=2)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


@pytest.fixture(scope="module")
def found_tied(tied: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(tied, TIED_WORLDS)


def same_as_peft(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert len(ours.losses) == qlora_work.STEPS
    exact = job.method is Method.LORA and "dora" not in job.adapter  # PEFT computes DoRA in another order
    # Of the loss: processors round in other places, and 20 steps make more than 1e-5 nats of that on some.
    assert far(ours.losses, plain.losses) <= (LOSS if exact else 1e-4) * max(plain.losses)


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_copies_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    same_as_peft(found, job)


@pytest.mark.parametrize("job", [ENDS, QUANTISED[0]], ids=str)
def test_tied_copies_of_peft_train_alike(found_tied: dict[str, Run], job: Job) -> None:
    same_as_peft(found_tied, job)


def test_they_are_trained(found: dict[str, Run]) -> None:
    assert len({tuple(found[str(job)].losses[1:]) for job in ALONE}) == len(ALONE)


@pytest.mark.parametrize("job", [*SPREAD, *HYBRID], ids=str)
def test_every_layout_trains_alike(found: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found, job, LOSS)


@pytest.mark.parametrize("job", TIED_WORLDS[2], ids=str)
def test_every_layout_trains_a_tied_weight_alike(found_tied: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found_tied, job, LOSS)


@pytest.mark.parametrize("job", SPREAD_BF16, ids=str)
def test_in_bf16_every_layout_trains_alike_to_its_roundings(found: dict[str, Run], job: Job) -> None:
    run, alone, exact = found[str(job)], found[str(BF16)], found[str(ENDS)]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= 2e-3 * max(alone.losses)
    assert far(run.losses, exact.losses) <= 0.02


@pytest.mark.parametrize("job", UNSYNCED, ids=str)
def test_without_sums_of_gradients_it_is_another(found: dict[str, Run], job: Job) -> None:
    assert far(found[str(job)].losses, found[str(ENDS)].losses[:3]) > 10 * LOSS


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_plain_peft_loads_the_result(tmp_path: Path, folder: Path, job: Job) -> None:
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, folder, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_either_name_of_a_tied_weight_trains_it_for_both(name: str) -> None:
    adapted = adapters.attach(models.llama(tied=True), Lora(**models.lora(modules_to_save=(name,))))
    config: Any = adapted.peft_config["default"]
    assert (config.modules_to_save, config.ensure_weight_tying) == (["lm_head", "model.embed_tokens"], True)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad and "lora_" not in n]
    assert trained == ["base_model.model.model.embed_tokens.weight"]


def test_a_tied_head_with_a_bias_is_refused_because_peft_would_compute_without_that() -> None:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "tie_word_embeddings": True, "pad_token_id": None}  # fmt: skip
    made: Any = AutoModelForCausalLM
    model = made.from_config(AutoConfig.for_model("phi", **sizes))
    with pytest.raises(ModelRefused, match=r"modules_to_save: lm_head shares its weight .* and has a bias"):
        whole_modules.chosen(model, Lora(**models.lora(modules_to_save=("embed_tokens",))))


def test_names_of_a_strangers_adapter_are_quoted_in_part() -> None:
    named = Lora(**models.lora(modules_to_save=("x\n\x1b[31m" + "y" * 9999,)))
    with pytest.raises(ModelRefused) as refused:
        whole_modules.chosen(models.llama(), named)
    assert len(str(refused.value)) < 600
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("job", [ENDS, QUANTISED[0], replace(ENDS, adapter="head")], ids=str)
def test_plain_peft_loads_a_tied_weight(tmp_path: Path, tied: Path, job: Job) -> None:
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, tied, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_what_is_trained_begins_with_the_numbers_of_the_files(
    folder: Path, tied: Path, is_tied: bool, quantised: bool
) -> None:
    """In fp32, as in full finetuning; a frozen base has their roundings to bf16."""
    path, method = (tied if is_tied else folder), (Method.QLORA if quantised else Method.LORA)
    wanted = models.run_config(
        path, path, path, method=method, precision="bf16", lora=LORA,
        quantisation={"format": "nf4", "double": True} if quantised else None,
    )  # fmt: skip
    stored = dict(LlamaForCausalLM.from_pretrained(path).named_parameters())
    assert wanted.lora is not None
    adapted = adapters.attach(models.loaded(path, wanted), wanted.lora)
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad and "lora_" not in n}
    names = {name.removeprefix("base_model.model.") for name in trained}
    whole = {"lm_head.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"}
    assert names == whole - ({"lm_head.weight"} if is_tied else set())
    assert all(torch.equal(p, stored[name.removeprefix("base_model.model.")]) for name, p in trained.items())
    assert adapted.get_parameter("base_model.model.model.norm.weight").dtype == torch.bfloat16


def test_a_step_changes_what_is_trained_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    [(before, after, trained)] = values(run_ranks(1, modules_to_save_work.around_a_step, folder, tmp_path, LORA))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == trained
    assert {n for n in changed if "lora_" not in n} == {
        f"base_model.model.{name}.weight" for name in ("lm_head", "model.embed_tokens", "model.layers.1.mlp.up_proj")
    }


def test_a_weight_decays_as_in_full_finetuning_and_a_norm_does_not(tmp_path: Path, folder: Path) -> None:
    """Rows of the embedding that no text has get no gradient."""
    lora = models.lora(modules_to_save=("embed_tokens", "model.norm"))
    [(before, after, _)] = values(run_ranks(1, modules_to_save_work.around_a_step, folder, tmp_path, lora, 0.5))
    name = "base_model.model.model.embed_tokens.weight"
    assert torch.allclose(after[name][-1], before[name][-1] * (1 - 1e-3 * 0.5), rtol=1e-6)
    assert not torch.equal(after[name][-1], before[name][-1])


def test_an_adapter_of_every_architecture_is_loaded_by_peft(tmp_path: Path) -> None:
    """Embedding and output head, and a layer, with experts and routers where there are such."""
    [far_off] = values(run_ranks(1, modules_to_save_work.far_from_peft, tmp_path))
    assert len(far_off) == 2 * len(architectures.ALL)
    assert max(far_off.values()) <= 1e-5, far_off


def test_files_with_two_weights_where_config_json_has_one_are_refused(tmp_path: Path) -> None:
    path = models.model_folder(tmp_path / "model")
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    lora = models.lora(modules_to_save=("embed_tokens",))
    with pytest.raises(
        ModelRefused, match=r"lm_head shares its weight by config.json, and the weight files have one"
    ):
        models.loaded(path, models.run_config(path, path, path, method="lora", lora=lora))


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"modules_to_save": ("lm_haed",)},
        "the model has no module lm_haed (did you mean lm_head?); name some of its: down_proj, embed_tokens",
    ),
    ({"modules_to_save": ("norm", r".*\.norm")}, r".*\.norm is no end of a name, and PEFT reads no expressions here"),
    ({"modules_to_save": ("act_fn",)}, "model.layers.0.mlp.act_fn has no weights; name modules that have some"),
    ({"modules_to_save": ("layers",)}, "model.layers is a list of modules; name modules in it"),
    (
        {"modules_to_save": ("lm_head",), "target_modules": ("q_proj", "lm_head")},
        "every layer that training.lora.target_modules has for lm_head is trained in full",
    ),
    ({"modules_to_save": ("proj",)}, "every layer that training.lora.target_modules has for all-linear is trained"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_be_trained_in_full_is_refused(changes: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        base = type(models.llama())(models.llama().config)
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(base, Lora(**models.lora(**changes)))
    assert message in str(refused.value)
    assert str(refused.value).startswith("training.lora.modules_to_save: ")
