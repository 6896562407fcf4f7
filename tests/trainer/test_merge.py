"""Merged models: plain transformers loads them, and they compute what PEFT computes with base and adapter."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune_api.runtime.choices import Method
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import Lora, RunConfig
from finetune_tokens import TokenizerRefused
from finetune_trainer import adapters, architecture, lora_files, merging, result, tensor_files
from finetune_trainer.errors import ModelRefused, OutputRefused, StorageFailed
from finetune_trainer.expressions import Expressions
from finetune_trainer.files import DISK
from finetune_trainer.marker import digests_in, read_marker
from trainer import architectures, merge_work, model_work, models, quantised, trainer_work
from trainer import result_work as work
from trainer.failpoints import Failing, Full
from trainer.ranks import run_ranks, values

# peft asks transformers by a name that transformers is going to drop
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NEAR = 1e-4
"""Largest difference of a logit, of models in fp32."""
SETTINGS: dict[str, dict[str, Any]] = {
    "alpha is twice the rank": {"r": 4, "lora_alpha": 8},
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "alpha / sqrt(r)": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "modules to save": {
        "r": 4, "lora_alpha": 8, "modules_to_save": ["embed_tokens", "lm_head", "norm", "layers.1.mlp"],
    },
    "modules to save with DoRA": {
        "r": 4, "lora_alpha": 8, "modules_to_save": ["layers.1.mlp.up_proj", "norm"], "use_dora": True,
    },
    "patterns": {
        "r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
        "alpha_pattern": {"k_proj": 3}, "use_rslora": True,
    },
    "rows of embedding and head": {"trainable_token_indices": {"embed_tokens": [40, 3], "lm_head": [40, 3]}},
    "rows of the embedding": {"trainable_token_indices": [3, 40]},
}  # fmt: skip


def adapter(base: Path, folder: Path, **settings: Any) -> Any:
    """An adapter of plain PEFT with random factors, saved in `folder`; the model with it, in fp32."""
    plain = loaded(base)
    transposed = plain.config.model_type == "gpt2"
    wanted: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": adapters._targets(plain, Lora(**models.lora())),
    } | settings
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=transposed, **wanted))
    work.disturb(model)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return model


def loaded(folder: Path) -> Any:
    """By plain transformers, in fp32; no key is missing, or left over."""
    made: Any = architecture.auto_class(AutoConfig.from_pretrained(folder))
    model, report = made.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model


def far(one: Any, other: Any) -> float:
    return float((work.logits(one) - work.logits(other)).abs().max())


def merged_logits_agree(tmp_path: Path, **settings: Any) -> None:
    """Of tmp_path/base with an adapter, which changes them, and the same merged."""
    with_adapter = adapter(tmp_path / "base", tmp_path / "adapter", **settings)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert far(merged, with_adapter) <= NEAR
    assert far(merged, loaded(tmp_path / "base")) > 10 * NEAR, "the adapter changes nothing"
    assert tensor_files.outlines(tmp_path / "merged") == tensor_files.outlines(tmp_path / "base")


@pytest.mark.parametrize("kind", architectures.ALL)
def test_a_merged_model_computes_what_base_and_adapter_compute_in_peft(tmp_path: Path, kind: str) -> None:
    architectures.model(kind).save_pretrained(tmp_path / "base")
    merged_logits_agree(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_scaling_is_that_of_the_settings(tmp_path: Path, name: str, tied: bool) -> None:
    models.model_folder(tmp_path / "base", tied=tied)
    merged_logits_agree(tmp_path, ensure_weight_tying=tied and name == "modules to save", **SETTINGS[name])


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]], ids=["all", "some of those in one tensor"])
def test_layers_that_the_files_have_in_one_tensor_are_merged_there(tmp_path: Path, targets: Any, dora: bool) -> None:
    save_hrm(tmp_path / "base")
    merged_logits_agree(tmp_path, target_modules=targets, use_dora=dora)


def save_hrm(folder: Path) -> None:
    """Queries, keys, values and gates of HRM-Text."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 4, "head_dim": 16, "max_position_embeddings": 64, "prefix_lm": False}  # fmt: skip
    settings = AutoConfig.for_model("hrm_text", **sizes)
    architecture.auto_class(settings).from_config(settings).save_pretrained(folder)
    assert any("gqkv_proj" in name for name in tensor_files.outlines(folder))


def test_dora_on_layers_that_are_stored_transposed_is_refused(tmp_path: Path) -> None:
    architectures.model("gpt2").save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter", use_dora=True)
    with pytest.raises(
        ModelRefused, match=r"c_attn has DoRA, and its weight is stored transposed .* load the adapter"
    ):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


def test_magnitudes_that_are_no_numbers_are_refused(tmp_path: Path, ready: Path) -> None:
    """In a tensor with rows of layers without DoRA, NaN stands for those."""
    adapter(ready / "base", tmp_path / "adapter", use_dora=True)
    set_tensors(lambda t: t[f"{LAYER}.lora_magnitude_vector"].fill_(torch.nan))(tmp_path)
    with pytest.raises(ModelRefused, match=r"q_proj, by its magnitudes, has numbers that are not finite"):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


def test_files_of_a_model_that_was_saved_without_its_head_keep_their_names(tmp_path: Path) -> None:
    """As GPT-2 was published: h.0..., not transformer.h.0..."""
    whole: Any = architectures.model("gpt2")
    whole.save_pretrained(tmp_path / "base")
    quantised.change_tensors(tmp_path / "base", _without_prefix)
    merged_logits_agree(tmp_path)


def _without_prefix(tensors: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


@pytest.mark.parametrize("modules", [["layers.0.self_attn.k_proj"], ["self_attn"]], ids=["a part", "all"])
def test_modules_that_the_files_have_in_one_tensor_with_others_are_merged_there(
    tmp_path: Path, modules: list[str]
) -> None:
    save_hrm(tmp_path / "base")
    merged_logits_agree(tmp_path, modules_to_save=modules)


def with_second_copy(base: Path, change: float = 0.0) -> None:
    """The files have the output head, too, which config.json ties to the embedding."""
    models.llama(tied=True).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


def test_a_second_copy_of_a_weight_that_was_trained_in_full_is_left_out(tmp_path: Path) -> None:
    """Else the old head would be beside the new embedding, and no longer tied to it."""
    with_second_copy(tmp_path / "base")
    ends = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    with_adapter = adapter(tmp_path / "base", tmp_path / "adapter", **ends)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    assert far(merged, with_adapter) <= NEAR
    assert merged.lm_head.weight is merged.model.embed_tokens.weight


def test_two_weights_where_config_json_has_one_are_not_merged(tmp_path: Path) -> None:
    models.llama(tied=True).save_pretrained(tmp_path / "base")
    ends = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    adapter(tmp_path / "base", tmp_path / "adapter", **ends)
    with_second_copy(tmp_path / "base", change=0.5)
    with pytest.raises(ModelRefused, match=r"are one weight by config.json, and two in the files; set tie_word_emb"):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


def test_an_adapter_whose_file_lost_a_module_is_not_merged(tmp_path: Path) -> None:
    models.llama().save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter", modules_to_save=["embed_tokens", "lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelRefused, match=r"modules_to_save of .* asks for lm_head.weight, and its file does not"):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("kind", architectures.ALL)
def test_a_layer_that_was_trained_in_full_is_merged(tmp_path: Path, kind: str) -> None:
    """With experts and routers where there are such."""
    whole = architectures.model(kind)
    whole.save_pretrained(tmp_path / "base")
    merged_logits_agree(tmp_path, modules_to_save=["h.1" if kind in ("gpt2", "falcon") else "layers.1"])


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gpt_oss", "xglm", "qwen2_5_vl"])
def test_biases_that_were_trained_are_merged(tmp_path: Path, kind: str) -> None:
    """With those of vision, which PEFT trains, too."""
    architectures.model(kind).save_pretrained(tmp_path / "base")
    merged_logits_agree(tmp_path, bias="all")
    names = {name for name in tensor_files.outlines(tmp_path / "base") if name.endswith(".bias")}
    base, merged = (load_file(tmp_path / each / "model.safetensors") for each in ("base", "merged"))
    assert names
    assert all(not torch.equal(base[name], merged[name]) for name in names)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_weight_that_was_trained_in_full_is_rounded_once(tmp_path: Path, stored: torch.dtype) -> None:
    whole: Any = models.llama()
    whole.to(stored).save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter", modules_to_save=["lm_head"])
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    merged = load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(merged, trained.to(stored))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_each_weight_is_computed_in_fp32_and_rounded_once(tmp_path: Path, stored: torch.dtype) -> None:
    whole: Any = models.llama()
    whole.to(stored).save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "adapter", r=4, lora_alpha=6)
    merging.run(tmp_path / "adapter", tmp_path / "merged")
    before, factors, after = (
        load_file(tmp_path / name)
        for name in ("base/model.safetensors", "adapter/adapter_model.safetensors", "merged/model.safetensors")
    )
    adapted = 0
    for name, weight in after.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if key.format("A") not in factors:
            assert torch.equal(weight, before[name]), name
            continue
        adapted += 1
        exact = before[name].double() + 1.5 * factors[key.format("B")].double() @ factors[key.format("A")].double()
        nearest, off = exact.to(stored), (weight.double() - exact).abs()
        assert torch.all(off <= (nearest.double() - exact).abs() + 1e-6 * exact.abs().clamp(min=1e-2)), name
    assert adapted == 28


def test_a_base_in_fp8_is_merged_as_its_copy_in_bf16(tmp_path: Path) -> None:
    for name in ("base", "plain"):
        models.model_folder(tmp_path / name)
    quantised.save_fp8(models.llama(), tmp_path / "base", tmp_path / "plain")
    with_adapter = adapter(tmp_path / "plain", tmp_path / "adapter")
    found = [
        merging.run(tmp_path / "adapter", tmp_path / f"of {name}", str(tmp_path / name)) for name in ("base", "plain")
    ]
    one, other = (load_file(tmp_path / f"of {name}" / "model.safetensors") for name in ("base", "plain"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found[0].bytes == found[1].bytes
    config = json.loads((tmp_path / "of base" / "config.json").read_bytes())
    assert (config.get("dtype"), config.get("torch_dtype"), "quantization_config" in config) == (
        None,
        "bfloat16",
        False,
    )
    merged = loaded(tmp_path / "of base")
    assert far(merged, with_adapter) <= 0.02 * float(work.logits(with_adapter).abs().max()), "rounded to bf16"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, an adapter of PEFT, and the output of a run with the same adapter."""
    folder = tmp_path_factory.mktemp("ready")
    base = models.model_folder(folder / "base", tied=True)
    adapter(base, folder / "adapter")
    trained = adapters.attach(loaded(base), Lora(rank=4, alpha=8, dropout=0.0, target_modules=("all-linear",)))
    work.disturb(trained)
    (folder / "output").mkdir()
    work.publish(folder / "output", trained, base, Method.LORA)
    (folder / "output" / "run.json").write_text('{"identity": {}}')
    return folder


def copied(ready: Path, folder: Path) -> Path:
    """The base stays where it is."""
    for name in ("adapter", "output"):
        shutil.copytree(ready / name, folder / name)
    return folder


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))

    return change


def set_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "adapter" / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return changed


EMBEDDING = "base_model.model.model.embed_tokens.weight"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no adapter": (lambda at: (at / "adapter" / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "pickled weights": (
        lambda at: (at / "adapter/adapter_model.safetensors").rename(at / "adapter/adapter_model.bin"),
        "adapter_model.safetensors is missing; .* writes safetensors",
    ),
    "cut off": (lambda at: os.truncate(at / "adapter/adapter_model.safetensors", 999), "is cut off"),
    "QALoRA": (set_config(use_qalora=True), "has use_qalora True, and only LoRA and DoRA are read; load it with"),
    "DoRA without magnitudes": (set_config(use_dora=True), "has no magnitudes, and use_dora in .* is true"),
    "another method": (set_config(peft_type="LOHA"), "has peft_type 'LOHA'"),
    "biases of another method": (set_config(bias="boft_only"), "has bias 'boft_only'"),
    "a kind of biases that is a list": (set_config(bias=["all"]), r"has bias \['all'\]"),
    "another base than it names": (set_config(init_lora_weights="pissa"), "has init_lora_weights 'pissa'"),
    "a key of a later PEFT": (set_config(use_new_thing=[1]), r"has use_new_thing \[1\]"),
    "another rank": (set_config(r=8), r"_proj has the rank 8 in adapter_config.json, but factors \[128, 4\]"),
    "no number": (
        set_config(lora_alpha="8"), "gives model.layers.0.* the rank 4 and the alpha '8', which have no quotient",
    ),
    "rank 0": (set_config(r=0), "the rank 0 and the alpha 8, which have no quotient"),
    "a saved module": (
        set_tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)})),
        "base_model.model.lm_head.weight: only factors A and B of linear layers",
    ),
    "a saved module of another size": (
        lambda at: (
            set_config(modules_to_save=["norm"])(at),
            set_tensors(lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(2)}))(at),
        ),
        "does not fit the base .*: model.norm.weight has 2 numbers, and 128 in the base; merge it into",
    ),
    "a saved module that the base lacks": (
        lambda at: (
            set_config(modules_to_save=["score"])(at),
            set_tensors(lambda t: t.update({"base_model.model.score.weight": torch.zeros(2)}))(at),
        ),
        "it has score.weight in full, and the base has nothing of that name",
    ),
    "an embedding that was trained apart from its head": (
        lambda at: (
            set_config(modules_to_save=["embed_tokens"])(at),
            set_tensors(lambda t: t.update({EMBEDDING: torch.ones(1024, 128)}))(at),
        ),
        "model.embed_tokens.weight was trained apart from lm_head.weight, with which it shares a weight in .*; load",
    ),
    "both, and with other values": (
        lambda at: (
            set_config(modules_to_save=["embed_tokens", "lm_head"])(at),
            set_tensors(lambda t: t.update({EMBEDDING: torch.ones(1024, 128)}))(at),
            set_tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(1024, 128)}))(at),
        ),
        "lm_head.weight and model.embed_tokens.weight are one weight in .*, and were trained apart; load the adapter",
    ),
    "names of saved modules that are none": (set_config(modules_to_save="norm"), "is no list of names; save it"),
    "a magnitude": (
        set_tensors(lambda t: t.update({f"{LAYER}.lora_magnitude_vector": torch.zeros(2)})),
        r"q_proj has magnitudes \[2\], and use_dora in adapter_config.json is false",
    ),
    "half a layer": (set_tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight")), "q_proj has only one of the factors"),
    "a layer that the base lacks": (
        set_tensors(lambda t: t.update({n.replace("s.0", "s.9"): t.pop(n) for n in list(t) if "layers.0" in n})),
        "does not fit the base .*: it is for model.layers.9.* and the base has no linear layer of that name",
    ),
    "a layer of another size": (
        set_tensors(lambda t: t.update({f"{LAYER}.lora_B.weight": torch.zeros(64, 4)})),
        "q_proj it has 128 inputs and 64 outputs, and the base has a weight of 128 x 128; merge it into the model",
    ),
    "the tied head": (
        lambda at: (
            set_config(target_modules=None)(at),
            set_tensors(lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.ones(4, 128),
                                            "base_model.model.lm_head.lora_B.weight": torch.ones(1024, 4)}))(at),
        ),
        "lm_head shares its weight with model.embed_tokens.weight in .*; load the adapter with PEFT",
    ),
    "numbers that are none": (
        set_tensors(lambda t: t[f"{LAYER}.lora_A.weight"].fill_(torch.nan)),
        "q_proj.weight has numbers that are not finite in torch.float32; if the .* bfloat16.*; else train it again",
    ),
    "a pattern that takes for ever": (
        set_config(rank_pattern={"(?:.*?[._]?){20}[A-Z]": 4}),
        r"rank_pattern of adapter_config.json has '\(\?:.*, which is no .*: it takes too long to match with the",
    ),
    "a pattern that is none": (set_config(alpha_pattern={"(": 4}), r"has '\(', which is no regular expression of"),
    "patterns that are none": (set_config(alpha_pattern=[4]), "alpha_pattern of adapter_config.json is no object"),
    "layers that PEFT would leave out": (
        set_config(target_modules=["q_proj"]),
        "has model.layers.0.*, which target_modules, exclude_modules or .* leave out; take both files from where",
    ),
    "layers that PEFT would exclude": (
        set_config(exclude_modules="model.layers.2.mlp.*"), r"has model.layers.2.mlp.*, which target_modules, excl",
    ),
    "layers of numbers that PEFT would not take": (
        set_config(layers_to_transform=[0, 1]), r"has model.layers.2.*, which target_modules, exclude_modules or",
    ),
    "targets that are none": (set_config(target_modules=[1]), r"target_modules, .* cannot be read: \[1\] is no"),
    "a base of a name that no file can have": (
        set_config(base_model_name_or_path="/" + 5000 * "a"), "which cannot be read here: .*File name too long; .*G",
    ),
    "no base": (set_config(base_model_name_or_path=""), "does not name its base; give --base"),
    "a base that is not here": (
        set_config(base_model_name_or_path="/mnt/claims/models/base"),
        "was trained on /mnt/claims/models/base, which cannot be read here: .*folder not found.* Give --base",
    ),
    "a base of a claim": (
        set_config(base_model_name_or_path="pvc://models/base"),
        "was trained on pvc://models/base, which cannot be read here: .*. Give --base",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_with_a_remedy_and_nothing_is_left(
    tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(lora_files, "Expressions", partial(Expressions, 0.5))
    change, message = REFUSED[case]
    change(copied(ready, tmp_path))
    with pytest.raises(ModelRefused, match=message):
        merging.run(tmp_path / "adapter", tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "output"}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_of_the_adapter_that_nobody_could_load_is_refused(tmp_path: Path, ready: Path, name: str) -> None:
    copied(ready, tmp_path)
    for own in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ready / "base" / own, tmp_path / "adapter" / own)
    (tmp_path / "adapter" / name).write_text("junk")
    with pytest.raises(TokenizerRefused, match=f"adapter/{name}: not "):
        merging.run(tmp_path / "adapter", tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "output"}


@pytest.mark.parametrize("given", ["output", "output/result", "fetched"])
def test_the_adapter_of_a_run_is_found_in_its_output_in_its_result_and_in_a_copy(
    tmp_path: Path, ready: Path, given: str
) -> None:
    copied(ready, tmp_path)
    shutil.copytree(tmp_path / "output" / "result", tmp_path / "fetched")
    found = merging.run(tmp_path / given, tmp_path / "merged")
    assert (found.layers, found.exit_code) == (28, 0)
    marker = read_marker(tmp_path / "merged")
    assert marker is not None
    assert (marker.step, marker.digest) == (20, "sha256:aa")
    assert marker.files.keys() == {path.name for path in (tmp_path / "merged").iterdir()} - {"COMPLETE"}
    assert digests_in(tmp_path / "merged", {})["model.safetensors"] == marker.files["model.safetensors"]
    readme = (tmp_path / "merged" / "README.md").read_text()
    assert "with a LoRA adapter merged into its weights" in readme
    assert "Trained on rows.jsonl for 20 optimizer steps." in readme


def test_another_base_than_that_of_the_run_is_refused_unless_it_is_given(
    tmp_path: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same shapes, so nothing else would tell."""
    shutil.copytree(inputs / "model", tmp_path / "model")
    settings = models.run_config(tmp_path / "model", inputs / "rows.jsonl", tmp_path / "out", schedule__max_steps=1,
                                 **METHODS["lora"])  # fmt: skip
    run(settings, tmp_path / "handoff")
    merging.run(tmp_path / "out", tmp_path / "merged")
    models.llama(tied=True, seed=9).save_pretrained(tmp_path / "model")
    with pytest.raises(
        ModelRefused, match=r"is not, file by file, the base that .*result was trained on: its content"
    ):
        merging.run(tmp_path / "out", tmp_path / "again")
    assert "note" not in capsys.readouterr().err
    merging.run(tmp_path / "out", tmp_path / "again", str(tmp_path / "model"))
    assert "note: " in capsys.readouterr().err
    assert (tmp_path / "again").exists()


def test_an_output_head_of_its_own_is_merged(tmp_path: Path) -> None:
    models.model_folder(tmp_path / "base", tied=False)
    merged_logits_agree(tmp_path, target_modules=["lm_head", "q_proj"])


@pytest.mark.parametrize(
    ("files", "template"),
    [(("tokenizer.json", "tokenizer_config.json"), "of the adapter"), (("tokenizer_config.json",), "of the base")],
    ids=["a whole one", "a part"],
)
def test_the_tokenizer_is_that_of_an_adapter_which_brings_one(
    tmp_path: Path, ready: Path, files: tuple[str, ...], template: str
) -> None:
    copied(ready, tmp_path)
    shutil.copytree(ready / "base", tmp_path / "base")
    for name in files:
        shutil.copyfile(ready / "base" / name, tmp_path / "adapter" / name)
    for folder in ("adapter", "base"):
        path = tmp_path / folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_bytes()) | {"chat_template": f"of the {folder}"}))
    merging.run(tmp_path / "adapter", tmp_path / "merged", str(tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == template


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flipped(path: Path) -> None:
    """One bit of the last value."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


EDITED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no result yet": (lambda at: shutil.rmtree(at / "result"), "no such folder; wait until its run has finished"),
    "half a result": (lambda at: (at / "result" / "COMPLETE").unlink(), "COMPLETE is missing"),
    "a part is missing": (lambda at: (at / "result/adapter_config.json").unlink(), "adapter_config.json is missing"),
    "cut off": (
        lambda at: truncated(at / "result/adapter_model.safetensors"),
        "adapter_model.safetensors has .* bytes",
    ),
    "a bit": (lambda at: flipped(at / "result/adapter_model.safetensors"), r"adapter_model.safetensors has changed"),
    "the scale": (
        lambda at: (at / "result/adapter_config.json").write_text(
            (at / "result/adapter_config.json").read_text().replace('"lora_alpha": 8', '"lora_alpha": 9')
        ),
        r"adapter_config.json has changed \(sha256\)",
    ),
}


@pytest.mark.parametrize("case", EDITED)
def test_an_adapter_that_is_not_as_it_was_published_is_refused(tmp_path: Path, ready: Path, case: str) -> None:
    change, message = EDITED[case]
    change(copied(ready, tmp_path) / "output")
    with pytest.raises(ModelRefused, match=message):
        merging.run(tmp_path / "output", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_is_being_written_is_refused(tmp_path: Path, ready: Path) -> None:
    shutil.copytree(ready / "output" / "result", tmp_path / ".tmp-result")
    with pytest.raises(ModelRefused, match=r"\.tmp-result is not complete .*: it is being written"):
        merging.run(tmp_path / ".tmp-result", tmp_path / "merged")


def test_a_folder_that_exists_is_refused_and_left_alone(tmp_path: Path, ready: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(OutputRefused, match="merged already exists; give --output with a new folder"):
        merging.run(ready / "adapter", tmp_path / "merged")
    assert list((tmp_path / "merged").iterdir()) == []


def test_a_second_merge_into_the_same_folder_is_refused_while_the_first_is_writing(
    tmp_path: Path, ready: Path
) -> None:
    with merging._own_folder(tmp_path / "merged", DISK) as first:
        (first / "model.safetensors").touch()
        with pytest.raises(OutputRefused, match=r"another process is writing .*merged; wait for it"):
            merging.run(ready / "adapter", tmp_path / "merged")
        assert (first / "model.safetensors").exists()


def test_what_a_killed_merge_has_left_is_removed_by_the_next(tmp_path: Path, ready: Path) -> None:
    (tmp_path / ".tmp-merge-merged").mkdir()
    (tmp_path / ".tmp-merge-merged" / "stray").touch()
    merging.run(ready / "adapter", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert not (tmp_path / "merged" / "stray").exists()


def test_a_merge_killed_at_any_operation_leaves_no_folder_or_a_whole_one(tmp_path: Path, ready: Path) -> None:
    [found] = values(run_ranks(1, merge_work.die_everywhere, ready, tmp_path))
    assert len(found) > 8
    assert set(found) == {False, True}
    assert found == sorted(found)


def test_a_volume_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = os.statvfs(tmp_path)
    size = sum(each.nbytes for each in tensor_files.outlines(ready / "base").values())
    blocks = size // volume.f_frsize
    small = os.statvfs_result((*volume[:2], volume.f_blocks, blocks, blocks, *volume[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: small)
    counting = Failing()
    with pytest.raises(StorageFailed, match=r"\.tmp-merge-merged needs .* MB, and its volume has .* left"):
        merging.run(ready / "adapter", tmp_path / "merged", files=counting)
    assert [kind for kind, _ in counting.log if kind == "create"] == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_volume_leaves_nothing(tmp_path: Path, ready: Path) -> None:
    with pytest.raises(StorageFailed, match="cannot write"):
        merging.run(ready / "adapter", tmp_path / "merged", files=Full("*.safetensors"))
    assert list(tmp_path.iterdir()) == []


def save_deep(folder: Path, dtype: torch.dtype, width: int) -> None:
    """With a width of 640 half a gigabyte in fp32, in files of which none is a twentieth of it."""
    config = LlamaConfig(
        vocab_size=6 * width, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=26,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    whole: Any = LlamaForCausalLM(config)
    whole.to(dtype).save_pretrained(folder, max_shard_size="26MB" if dtype is torch.float32 else "13MB")


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp8"])
def test_merging_takes_the_memory_of_one_file_of_the_model_at_most(tmp_path: Path, stored: str) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    dtype = torch.float32 if stored == "fp32" else torch.bfloat16
    save_deep(small, dtype, 16)
    if stored == "fp8":
        model_work.save_deep_fp8(large)
    else:
        save_deep(large, dtype, 640)
    [memory] = values(run_ranks(1, merge_work.memory_of_merging, small, large, tmp_path))
    print(memory)
    if stored != "fp8":
        assert memory.whole >= 20 * memory.largest_file
        assert memory.grown <= memory.largest_file, memory
    assert memory.grown <= 6 * memory.largest_tensor, memory


def test_from_a_base_in_four_bits_merging_loses_no_more_than_quantising(tmp_path: Path) -> None:
    """KL divergences of the next token, in nats, mean over 64 rows."""
    base = models.model_folder(tmp_path / "base")
    whole: Any = models.llama()
    whole.to(torch.bfloat16).save_pretrained(base)
    wanted = models.run_config(
        base, base, tmp_path, method="qlora", lora=models.lora(), quantisation={"format": "nf4", "double": True}
    )
    rows = torch.randint(1024, (64, 24), generator=torch.Generator().manual_seed(5))
    trained = adapters.attach(models.loaded(base, wanted), wanted.lora)  # type: ignore[arg-type]
    with trained.disable_adapter():
        in_four_bits = log_probabilities(trained, rows)
    work.disturb(trained)
    (tmp_path / "output").mkdir()
    work.publish(tmp_path / "output", trained, base, Method.QLORA)
    merging.run(tmp_path / "output", tmp_path / "merged")
    after = log_probabilities(trained, rows)
    lost = divergence(after, log_probabilities(loaded(tmp_path / "merged"), rows))
    by_quantising = divergence(in_four_bits, log_probabilities(loaded(base), rows))
    assert lost <= 1.2 * by_quantising
    assert divergence(after, in_four_bits) > 5 * lost, "the adapter changes little"


def log_probabilities(model: Any, rows: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.as_tensor(model(rows).logits).double().log_softmax(-1)


def divergence(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": models.lora()},
    "qlora": {"method": "qlora", "lora": models.lora(), "quantisation": {"format": "nf4", "double": True}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model", tied=True)
    models.dataset(folder / "rows.jsonl", 8)
    return folder


def config(inputs: Path, output: Path, **changes: Any) -> RunConfig:
    """A run of two steps that merges."""
    short = {"schedule__max_steps": 2, "optimizer__learning_rate": 0.02, "merge": True, **METHODS["lora"]}
    return models.run_config(inputs / "model", inputs / "rows.jsonl", output, **(short | changes))


def run(settings: RunConfig, handoff: Path) -> FinalReport:
    report: FinalReport = values(run_ranks(1, trainer_work.run, settings, handoff))[0]
    return report


def test_a_volume_without_room_is_refused_before_the_first_step_and_merging_later_is_a_way_out(
    tmp_path: Path, inputs: Path
) -> None:
    many: dict[str, Any] = {"schedule__max_steps": 10**9, "schedule__epochs": 10**9}
    settings = config(inputs, tmp_path / "out", checkpointing={"every_steps": 1, "keep": 10**9}, **many)
    [ended] = run_ranks(1, trainer_work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, StorageFailed)
    said = r"out needs [\d.]+ GB, and its volume has .*lower training\.save_total_limit, or leave output\.merge out"
    assert re.search(said, str(ended.error))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_adds_the_merged_model_to_its_result(tmp_path: Path, inputs: Path, method: str) -> None:
    report = run(config(inputs, tmp_path / "out", **METHODS[method]), tmp_path / "handoff")
    folder = tmp_path / "out" / "result"
    base = loaded(inputs / "model")
    assert far(loaded(folder / "merged"), PeftModel.from_pretrained(base, str(folder))) <= NEAR
    assert far(loaded(folder / "merged"), loaded(inputs / "model")) > 10 * NEAR
    marker = result.finished(tmp_path / "out", report.digest)
    assert marker is not None
    files = digests_in(folder, {})
    assert marker.files == {n: each for n, each in files.items() if n != "COMPLETE" and not n.startswith("merged/")}
    merged = read_marker(folder / "merged")
    assert merged is not None
    assert (merged.digest, merged.step) == (marker.digest, marker.step)
    assert merged.files["model.safetensors"] == files["merged/model.safetensors"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "checkpoints",
        "records.jsonl",
        "result",
        "run.json",
    }
    card, merged_card = ((folder / name).read_text() for name in ("README.md", "merged/README.md"))
    assert "The folder `merged` is the base with this adapter merged" in card
    assert "The folder `merged`" not in merged_card
    for text in (card, merged_card):
        assert "Trained on rows.jsonl for 2 optimizer steps." in text
        assert "| training.lora.alpha | 8.0 |" in text
    tokenizers = [(each / "tokenizer_config.json").read_bytes() for each in (folder / "merged", inputs / "model")]
    assert tokenizers[0] == tokenizers[1]


def test_ranks_of_a_sharded_run_wait_until_it_is_merged(tmp_path: Path, inputs: Path) -> None:
    two = {"engine": "fsdp2", "mesh__processes_per_node": 2, "mesh__data_parallel": 2, "batch__accumulation": 1}
    values(run_ranks(2, merge_work.run_on_ranks, config(inputs, tmp_path / "out", **two), tmp_path))
    merged = loaded(tmp_path / "out" / "result" / "merged")
    assert far(merged, PeftModel.from_pretrained(loaded(inputs / "model"), str(tmp_path / "out" / "result"))) <= NEAR


def test_a_finished_run_that_is_to_merge_now_trains_nothing_and_adds_the_merged_model(
    tmp_path: Path, inputs: Path
) -> None:
    run(config(inputs, tmp_path / "out", merge=False), tmp_path / "first")
    folder = tmp_path / "out" / "result"
    assert not (folder / "merged").exists()
    before = (folder / "adapter_model.safetensors").stat().st_ino
    report = run(config(inputs, tmp_path / "out"), tmp_path / "second")
    assert (report.exit_code, report.step) == (0, 2)
    assert "nothing was trained" in report.message
    assert (folder / "adapter_model.safetensors").stat().st_ino == before
    assert read_marker(folder / "merged") is not None
    number = (folder / "merged").stat().st_ino
    run(config(inputs, tmp_path / "out"), tmp_path / "third")
    assert (folder / "merged").stat().st_ino == number, "merged once"


def test_an_addition_killed_at_any_operation_leaves_the_adapter_and_is_made_again(
    tmp_path: Path, ready: Path
) -> None:
    [found] = values(run_ranks(1, merge_work.die_adding_everywhere, ready, tmp_path))
    assert len(found) > 8
    assert set(found) == {False, True}
    assert found == sorted(found)


def test_what_the_command_has_merged_into_the_result_is_what_the_run_would_have(tmp_path: Path, ready: Path) -> None:
    copied(ready, tmp_path)
    merged = tmp_path / "output" / "result" / "merged"
    merging.run(tmp_path / "output", merged)
    number = merged.stat().st_ino
    result.add_merged(tmp_path / "output", ready / "base")
    assert merged.stat().st_ino == number


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, ready: Path) -> None:
    copied(ready, tmp_path)
    merged = tmp_path / "output" / "result" / "merged"
    merged.mkdir()
    (merged / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(OutputRefused, match=r"output.merge: .*merged is there already, and is not what this run has"):
        result.add_merged(tmp_path / "output", ready / "base")
    assert (merged / "model.safetensors").read_bytes() == b"mine"


def test_an_adapter_is_complete_without_its_merged_model(tmp_path: Path, ready: Path) -> None:
    copied(ready, tmp_path)
    result.add_merged(tmp_path / "output", ready / "base")
    (tmp_path / "output" / "result" / "merged").rename(tmp_path / "elsewhere")
    merging.run(tmp_path / "output", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "elsewhere" / "model.safetensors"
    ).read_bytes()


def test_a_readme_that_is_a_link_is_not_copied(tmp_path: Path, ready: Path) -> None:
    copied(ready, tmp_path)
    (tmp_path / "secret").write_text("first\nhunter2\n")
    readme = tmp_path / "output" / "result" / "README.md"
    size = readme.stat().st_size
    readme.unlink()
    readme.symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("first\nhunter2\n".ljust(size))
    with pytest.raises(ModelRefused, match=r"README.md has changed \(sha256\)"):
        merging.run(tmp_path / "output", tmp_path / "merged")
    forged = json.loads((tmp_path / "output" / "result" / "COMPLETE").read_bytes())
    del forged["files"]["README.md"]
    (tmp_path / "output" / "result" / "COMPLETE").write_text(json.dumps(forged))
    merging.run(tmp_path / "output", tmp_path / "merged")
    assert "hunter2" not in (tmp_path / "merged" / "README.md").read_text()


def test_a_tensor_of_a_format_that_is_not_read_is_named(tmp_path: Path, ready: Path) -> None:
    shutil.copytree(ready / "base", tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file(load_file(path) | {"model.extra": torch.zeros(2, dtype=torch.uint32)}, path, {"format": "pt"})
    with pytest.raises(ModelRefused, match=r"model.extra has the format U32, which is not read here"):
        merging.run(ready / "adapter", tmp_path / "merged", str(tmp_path / "base"))


def test_a_pipe_is_not_read(tmp_path: Path, ready: Path) -> None:
    shutil.copytree(ready / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter" / "adapter_config.json")
    with pytest.raises(ModelRefused, match=r"adapter_config\.json: Is not a regular file"):
        merging.run(tmp_path / "adapter", tmp_path / "merged")


def test_a_run_asks_its_volume_for_the_room_of_the_merged_model(tmp_path: Path, inputs: Path) -> None:
    asked = []
    for merge in (False, True):
        settings = config(inputs, tmp_path / f"out {merge}", merge=merge, checkpointing={"every_steps": 0, "keep": 1})
        [(needed, taken)] = values(run_ranks(1, trainer_work.run_measured, settings, tmp_path / f"handoff {merge}"))
        asked.append(needed)
    assert 0.97 < taken / needed < 1.03
    assert asked[1] - asked[0] == sum(each.nbytes for each in tensor_files.outlines(inputs / "model").values())


def test_an_adapter_that_could_not_be_merged_is_refused_before_the_first_step(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path / "out", lora=models.lora(target_modules=("q_proj", "lm_head")))
    [ended] = run_ranks(1, trainer_work.run, settings, tmp_path / "handoff")
    assert isinstance(ended.error, ModelRefused)
    assert re.match(
        "output.merge: adapter of this run: lm_head shares its weight with model.embed.* or remove output.merge",
        str(ended.error),
    )
    assert not (tmp_path / "out" / "checkpoints").exists()
