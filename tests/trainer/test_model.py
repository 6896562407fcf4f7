"""The base model in many ranks: every rank reads the files and keeps its part."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models
from trainer import model_work as work
from trainer.ranks import run_ranks, values

ENGINES = ("ddp", "fsdp2")
METHODS: dict[str, dict[str, Any]] = {
    "fft": {},
    "lora": {"method": "lora", "lora": models.lora()},
    "lora on bf16": {"method": "lora", "lora": models.lora(), "precision": "bf16"},
    "lora and ends on bf16": {
        "method": "lora",
        "lora": models.lora(modules_to_save=("embed_tokens", "lm_head")),
        "precision": "bf16",
        "rounding": "nearest",
    },
}


def _config(tmp_path: Path, world: int = 2, **changes: Any) -> RunConfig:
    return models.run_config(
        tmp_path / "model", tmp_path / "rows", tmp_path / "out",
        mesh__processes_per_node=world, mesh__data_parallel=world, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_rank_gets_the_weights_of_the_files(tmp_path: Path, engine: str, method: str, tied: bool) -> None:
    """On three ranks, whose shards are not of the same size."""
    folder = models.model_folder(tmp_path / "model", tied=tied)
    first, *others = values(run_ranks(3, work.built, folder, _config(tmp_path, 3, engine=engine, **METHODS[method])))
    for other in others:
        assert first.keys() == other.keys()
        for name, tensor in first.items():
            assert (tensor.dtype, tensor.tolist()) == (other[name].dtype, other[name].tolist()), name
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    found = {name.removeprefix("base_model.model.").replace(".base_layer", ""): t for name, t in first.items()}
    for name, tensor in loaded.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_of_an_engine_is_what_its_model_computes_with(tmp_path: Path, engine: str) -> None:
    """Also where shards are not of the same size, and FSDP2 pads them."""
    folder = models.model_folder(tmp_path / "model")
    [found, *_] = values(run_ranks(3, work.shifted, folder, _config(tmp_path, 3, engine=engine)))
    for name, weight in AutoModelForCausalLM.from_pretrained(folder).named_parameters():
        assert torch.equal(found[name], weight + 1.0), name


@pytest.mark.parametrize("same", [True, False], ids=["equal", "different"])
def test_weights_that_config_json_ties_are_tied_where_the_files_have_both_and_they_are_equal(
    tmp_path: Path, same: bool
) -> None:
    untied = models.llama(tied=False)
    if same:
        untied.lm_head.weight.data.copy_(untied.model.embed_tokens.weight)
    untied.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_bytes())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    loaded = models.loaded(tmp_path / "model", _config(tmp_path))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == same
    assert torch.equal(loaded.lm_head.weight, untied.lm_head.weight)
    assert torch.equal(loaded.model.embed_tokens.weight, untied.model.embed_tokens.weight)


@pytest.mark.parametrize("rows", [7, 6, 4, 2, 1])
def test_what_a_rank_keeps_is_its_shard(tmp_path: Path, rows: int) -> None:
    for kept, shard in values(run_ranks(3, work.kept_and_sharded, rows, _config(tmp_path, 3, engine="fsdp2"))):
        assert torch.equal(kept, shard)


DEEP = {"": work.save_deep_model, "fp8": work.save_deep_fp8, "mxfp4": work.save_deep_mxfp4}
STORED: dict[str, dict[str, Any]] = {
    "fft in fp32": {}, "fft in bf16": {"precision": "bf16"}, "lora on bf16": METHODS["lora on bf16"],
    "lora and ends on bf16": METHODS["lora and ends on bf16"],
    "qlora on bf16": METHODS["lora on bf16"] | {"method": "qlora", "quantisation": {"format": "nf4", "double": True}},
    "qlora on int8": METHODS["lora on bf16"] | {
        "method": "qlora", "quantisation": {"format": "int8", "double": False}},
}  # fmt: skip
LOADED = [pytest.param("", stored, id=stored) for stored in STORED] + [
    pytest.param(files, stored, id=f"{stored} from {files}")
    for files in ("fp8", "mxfp4") for stored in ("fft in bf16", "qlora on bf16")
]  # fmt: skip


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of many layers, by the format of its files; one at a time, for they are large."""
    kept: dict[str, Path] = {}

    def folder(files: str) -> Path:
        if files not in kept:
            for other in kept.values():
                shutil.rmtree(other)
            kept.clear()
            kept[files] = tmp_path_factory.mktemp("deep")
            DEEP[files](kept[files])
        return kept[files]

    return folder


@pytest.mark.parametrize(("files", "stored"), LOADED)
def test_a_rank_that_loads_holds_its_shard_and_a_few_tensors(
    tmp_path: Path, deep: Callable[[str], Path], files: str, stored: str
) -> None:
    small = models.model_folder(tmp_path / "model")
    config = _config(tmp_path, 4, engine="fsdp2", **STORED[stored])
    found = run_ranks(4, work.memory_of_loading, small, deep(files), config)
    if files == "mxfp4" and "qlora" in stored:
        assert all("would stay in 16 bits" in str(each.error) for each in found)
        return
    for memory in values(found):
        assert memory.grown >= 0.9 * memory.shard, f"{memory}: or this test measures nothing"
        assert memory.grown <= memory.shard + 3 * memory.largest, memory


def test_what_the_architecture_does_not_train_stays_frozen(tmp_path: Path) -> None:
    built = architectures.model("ernie4_5_moe")
    frozen = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    built.save_pretrained(tmp_path / "model")
    loaded = models.loaded(tmp_path / "model", _config(tmp_path))
    assert frozen == {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} != set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "nope"}, "cannot be loaded, check its config.json: KeyError: 'nope'"),
        ({"num_attention_heads": 0}, "cannot be loaded, check its config.json: ZeroDivisionError"),
        ({"vocab_size": 50_000_000}, "describes 12,800,590,976 parameters, the weight files have "),
        ({"num_hidden_layers": 1_000_000}, "config.json has 1,000,000 layers, the weight files 39 tensors"),
        ({"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}, "brings its own code (auto_map in"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_no_model_can_have_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = models.model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelRefused, match=re.escape(f"model {folder}")) as refusal:
        models.loaded(folder, _config(tmp_path))
    assert message in str(refusal.value)


@pytest.mark.parametrize("engine", ["fsdp2", "zero1", "zero3"])
def test_layers_left_out_at_random_are_refused_where_ranks_share_weights(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "model"
    built = architectures.model("xglm")
    built.config.layerdrop = 0.1
    built.save_pretrained(folder)
    with pytest.raises(ModelRefused, match=r"layerdrop in config\.json is 0\.1, .*; set it to 0, or in hyper"):
        models.loaded(folder, _config(tmp_path, engine=engine))
    models.loaded(folder, _config(tmp_path, engine="ddp"))


def test_a_weight_file_that_is_cut_off_is_refused_by_its_name(tmp_path: Path) -> None:
    file = models.model_folder(tmp_path / "model") / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(
        ModelRefused, match=r"model\.safetensors is cut off or no safetensors file .*; copy or download"
    ):
        models.loaded(tmp_path / "model", _config(tmp_path))


def test_integers_that_transformers_puts_together_are_no_weights(tmp_path: Path) -> None:
    """They would be trained as numbers, and cut off to integers again in the result."""
    architectures.model("mixtral").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    experts = {name: tensor.to(torch.int8) for name, tensor in tensors.items() if ".experts." in name}
    assert experts
    safetensors.torch.save_file(tensors | experts, file, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"experts\.0\.w\d\.weight has the format torch\.int8"):
        models.loaded(tmp_path / "model", _config(tmp_path))


def test_weights_that_are_not_there_are_refused_on_every_rank(tmp_path: Path) -> None:
    """Also those that only some ranks miss."""
    full, without = models.model_folder(tmp_path / "model"), tmp_path / "without-weights"
    shutil.copytree(full, without, ignore=shutil.ignore_patterns("*.safetensors"))
    for ended in run_ranks(2, work.refused, [full, without], _config(tmp_path, engine="ddp")):
        assert isinstance(ended.error, ModelRefused)
        assert str(ended.error).startswith(f"rank 1: model {without} cannot be loaded")


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_weight_file_without_one_tensor_is_refused_on_every_rank(tmp_path: Path, engine: str) -> None:
    """No weight begins at random."""
    folder = models.model_folder(tmp_path / "model", layers=2)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for ended in run_ranks(2, work.refused, [folder, folder], _config(tmp_path, engine=engine)):
        assert isinstance(ended.error, ModelRefused)
        assert "model.layers.1.mlp.up_proj.weight" in str(ended.error)
