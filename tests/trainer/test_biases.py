"""Biases that are trained beside adapters: against PEFT's, the same on every layout, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from finetune_api.runtime.choices import Engine, LoraBias, Method, Precision
from finetune_api.runtime.run_config import Lora
from finetune_trainer import adapter_folder, adapters, architecture, lora_files, merge, model, scope
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models, modules_to_save_work, qlora_work, result_work
from trainer.qlora_work import Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
ALL = Job(method=Method.LORA, adapter="biases")
OF_LAYERS = Job(method=Method.LORA, adapter="biases of adapted layers")
FP32 = [ALL, OF_LAYERS, replace(ALL, adapter="dora and biases"), replace(ALL, adapter="biases, a norm and a layer")]
QUANTISED = replace(ALL, method=Method.QLORA)
"""Each layer with a bias has codes and an adapter."""
PARTLY = replace(OF_LAYERS, method=Method.QLORA, adapter="biases without adapters")
BF16 = replace(ALL, precision=Precision.BF16)
ALONE = [*FP32, QUANTISED, PARTLY]
SHARDED = [replace(job, engine=engine) for job in (ALL, QUANTISED) for engine in (Engine.DDP, Engine.FSDP2)]
SHARDED_BF16 = [replace(BF16, engine=engine) for engine in (Engine.DDP, Engine.FSDP2)]
UNSYNCED = [replace(ALL, engine=engine, synced=False, steps=3) for engine in (Engine.DDP, Engine.FSDP2)]
WORLDS = {
    1: [*ALONE, BF16, *(replace(job, plain=True) for job in ALONE)],
    2: [*SHARDED, *SHARDED_BF16, *UNSYNCED],
}
"""Jobs by number of ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(models.llama(biases=True), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_biases_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert len(ours.losses) == qlora_work.STEPS
    exact = job.method is Method.LORA and "dora" not in job.adapter  # PEFT computes DoRA in another order
    assert far(ours.losses, plain.losses) <= (LOSS if exact else 1e-4)


def test_they_are_trained(found: dict[str, Run]) -> None:
    assert len({tuple(found[str(job)].losses[1:]) for job in ALONE}) == len(ALONE)


@pytest.mark.parametrize("job", SHARDED, ids=str)
def test_every_layout_trains_alike(found: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found, job, LOSS)


@pytest.mark.parametrize("job", SHARDED_BF16, ids=str)
def test_in_bf16_every_layout_trains_alike_to_its_roundings(found: dict[str, Run], job: Job) -> None:
    run, alone, exact = found[str(job)], found[str(BF16)], found[str(ALL)]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= 2e-3 * max(alone.losses)
    assert far(run.losses, exact.losses) <= 0.02


@pytest.mark.parametrize("job", UNSYNCED, ids=str)
def test_without_sums_of_gradients_it_is_another(found: dict[str, Run], job: Job) -> None:
    assert far(found[str(job)].losses, found[str(ALL)].losses[:3]) > 10 * LOSS


@pytest.mark.parametrize("job", [*FP32, QUANTISED], ids=str)
def test_plain_peft_loads_the_result(tmp_path: Path, folder: Path, job: Job) -> None:
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, folder, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


def test_an_adapter_of_every_architecture_is_loaded_by_peft(tmp_path: Path) -> None:
    [far_off] = values(run_ranks(1, modules_to_save_work.far_from_peft, tmp_path, {"bias": "all"}))
    assert len(far_off) >= 6
    assert max(far_off.values()) <= 1e-5, far_off


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_step_changes_adapters_and_these_biases_and_nothing_else(tmp_path: Path, folder: Path, bias: str) -> None:
    lora = models.lora(bias=bias, target_modules=("q_proj", "up_proj"))
    [(before, after, trained)] = values(run_ranks(1, modules_to_save_work.around_a_step, folder, tmp_path, lora))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    every = {name for name in before if name.endswith(".bias")}
    adapted = {name for name in every if name.endswith(("q_proj.base_layer.bias", "up_proj.base_layer.bias"))}
    assert (len(every), len(adapted)) == (28, 8)
    assert {name for name in trained if "lora_" not in name} == (every if bias == "all" else adapted)
    assert {name for name in changed if "lora_" not in name} <= trained
    # That of a key adds the same to all scores of a query: softmax does not see it, but for roundings.
    assert trained - changed <= {name for name in every if "k_proj" in name}


@pytest.mark.parametrize("quantised", [False, True], ids=["lora", "qlora"])
def test_they_begin_with_the_numbers_of_the_files(folder: Path, quantised: bool) -> None:
    """In fp32, as in full finetuning; what is frozen has their roundings to bf16."""
    wanted = models.run_config(
        folder, folder, folder, method="qlora" if quantised else "lora", precision="bf16",
        lora=models.lora(bias="lora_only", target_modules=("q_proj",)),
        quantisation={"format": "nf4", "double": True} if quantised else None,
    )  # fmt: skip
    stored = dict(LlamaForCausalLM.from_pretrained(folder).named_parameters())
    assert wanted.lora is not None
    adapted = adapters.attach(models.loaded(folder, wanted), wanted.lora)
    in_full = [(n, p) for n, p in adapted.named_parameters() if p.requires_grad and "lora_" not in n]
    trained = {lora_files.in_model(name): parameter for name, parameter in in_full}
    assert trained.keys() == {f"model.layers.{n}.self_attn.q_proj.bias" for n in range(4)}
    assert all(torch.equal(p, stored[name]) for name, p in trained.items())
    other = adapted.get_parameter("base_model.model.model.layers.0.self_attn.k_proj.bias")
    assert other.dtype == torch.bfloat16


def test_they_do_not_decay(tmp_path: Path, folder: Path) -> None:
    """As in full finetuning; Adam's first step is the learning rate, whatever the gradient is."""
    lora = models.lora(bias="all")
    [(before, after, _)] = values(run_ranks(1, modules_to_save_work.around_a_step, folder, tmp_path, lora, 0.5))
    name = "base_model.model.model.layers.0.mlp.down_proj.base_layer.bias"
    assert torch.allclose((after[name] - before[name]).abs(), torch.tensor(1e-3), rtol=1e-2)


def with_biases(base: Path, folder: Path, bias: str, **settings: Any) -> Any:
    """An adapter of plain PEFT with random factors and biases, saved in `folder`; the model with it."""
    plain = LlamaForCausalLM.from_pretrained(base)
    targets = ["q_proj", "up_proj"]
    adapted = get_peft_model(plain, LoraConfig(r=4, target_modules=targets, bias=bias, **settings))  # type: ignore[arg-type]
    result_work.disturb(adapted)
    adapted.save_pretrained(str(folder))
    return adapted


@pytest.mark.parametrize(
    "more",
    [{}, {"modules_to_save": ["layers.2.mlp.up_proj", "norm"]}, {"modules_to_save": ["layers.3.self_attn"]}],
    ids=["", "leaves", "a container"],
)
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_training_continues_with_the_biases_of_peft(
    tmp_path: Path, folder: Path, bias: str, more: dict[str, Any]
) -> None:
    with_biases(folder, tmp_path / "theirs", bias, **more)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folder), str(tmp_path / "theirs"))
    lora = adapter_folder.continued(Lora(**models.lora(source="theirs")), tmp_path / "theirs")
    wanted = models.run_config(folder, folder, folder, method="lora", lora=lora.model_dump())
    adapted = adapters.attach(models.loaded(folder, wanted), lora)
    adapters.take_values(adapted, tmp_path / "theirs", lambda weight: weight)
    difference = result_work.logits(adapted) - result_work.logits(theirs)
    assert float(difference.abs().max()) <= 1e-5
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and name.endswith(".bias")}
    beside = 3 * ("layers.3.self_attn" in more.get("modules_to_save", ()))  # of k, v and o, which get no adapter
    assert len(trained) == (28 if bias == "all" else 8 + beside)


def test_an_adapter_whose_file_lost_a_bias_is_not_continued(tmp_path: Path, folder: Path) -> None:
    with_biases(folder, tmp_path, "all")
    lost = "base_model.model.model.layers.3.mlp.down_proj.bias"
    tensors = load_file(tmp_path / adapter_folder.WEIGHTS)
    del tensors[lost]
    save_file(tensors, tmp_path / adapter_folder.WEIGHTS, {"format": "pt"})
    lora = adapter_folder.continued(Lora(**models.lora(source="theirs")), tmp_path)
    with pytest.raises(ModelRefused, match=r"does not have model.layers.3.mlp.down_proj.bias, which belongs to"):
        adapters.attach(models.llama(biases=True), lora)
    with pytest.raises(ModelRefused, match=r"its bias of .* asks for model.layers.3.mlp.down_proj.bias"):
        merge.plan(folder, lora_files.read(tmp_path))


def test_a_bias_with_two_names_in_the_file_is_refused(tmp_path: Path, folder: Path) -> None:
    """One would be compared with the model, and the other be read."""
    with_biases(folder, tmp_path, "all")
    tensors = load_file(tmp_path / adapter_folder.WEIGHTS)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.bias"] = torch.zeros(128)
    save_file(tensors, tmp_path / adapter_folder.WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelRefused, match=r"q_proj.*bias has two names"):
        lora_files.read(tmp_path)


@pytest.mark.parametrize("bias", ["all", "none"])
def test_rows_of_a_head_with_a_bias_are_refused_because_peft_would_compute_without_that(bias: str) -> None:
    made: Any = AutoModelForCausalLM
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "pad_token_id": None}  # fmt: skip
    phi = made.from_config(AutoConfig.for_model("phi", **sizes))
    with pytest.raises(ModelRefused, match=r"lm_head has a bias, which PEFT would leave out .* train it in full"):
        adapters.attach(phi, Lora(**models.lora(bias=bias, trainable_tokens=("a",), token_ids=(3,))))


def test_biases_of_vision_stay_frozen_and_routers_that_have_one_get_their_loss(tmp_path: Path) -> None:
    seeing = architectures.model("qwen2_5_vl")
    architecture.freeze_other_parts(seeing)
    adapted = adapters.attach(seeing, Lora(**models.lora(bias="all")))
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad and name.endswith(".bias")}
    assert len(trained) == 6, "those of q, k and v in two layers"
    assert "biases are trained in model.language_model.layers.*.self_attn.q_proj, " in scope.sentence(adapted)
    for kind, asked, has_loss in (("gpt_oss", "all", True), ("gpt_oss", "none", False)):
        routed = architectures.model(kind)
        routed.config.output_router_logits = True
        lora = models.lora(bias=asked, target_modules=("q_proj",))
        model.prepare(routed, models.run_config(tmp_path, tmp_path, tmp_path, method="lora", lora=lora))
        assert routed.config.output_router_logits == has_loss


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a model without any": (
        "llama", {"bias": "all"}, "training.lora.bias: all trains biases, and llama has none; set it to none",
    ),
    "layers without any": (
        "qwen2", {"bias": "lora_only", "target_modules": ("up_proj",)},
        ("training.lora.bias: lora_only trains biases, and qwen2 has none in layers that get an adapter; set it to "
         "none, or set it to all"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bias_is_refused(name: str) -> None:
    kind, lora, message = REFUSED[name]
    with pytest.raises(ModelRefused) as refused:
        adapters.attach(architectures.model(kind), Lora(**models.lora(**lora)))
    assert str(refused.value) == message


def test_an_adapter_of_peft_without_any_bias_is_continued(tmp_path: Path) -> None:
    """PEFT takes bias: all for a model that has none."""
    models.llama().save_pretrained(tmp_path / "base")
    with_biases(tmp_path / "base", tmp_path / "theirs", "all")
    lora = adapter_folder.continued(Lora(**models.lora(source="theirs")), tmp_path / "theirs")
    assert lora.bias is LoraBias.ALL
    adapters.attach(models.llama(), lora)


def test_a_quantised_layer_gives_its_bias_the_gradient_of_a_plain_one(folder: Path) -> None:
    """Of any number of dimensions."""
    wanted = models.run_config(
        folder, folder, folder, method="qlora", lora=models.lora(), quantisation={"format": "nf4", "double": True}
    )
    layer: Any = models.loaded(folder, wanted).get_submodule("model.layers.0.mlp.up_proj")
    x, bias = torch.randn(2, 3, 128), layer.bias.detach().clone().requires_grad_(True)
    layer.bias = nn.Parameter(layer.bias.detach())
    [ours] = torch.autograd.grad((layer(x) ** 2).sum(), [layer.bias])
    [theirs] = torch.autograd.grad((nn.functional.linear(x, layer.whole(layer.weight), bias) ** 2).sum(), [bias])
    assert torch.allclose(ours, theirs, rtol=1e-5)
