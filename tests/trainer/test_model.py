"""The base model in many ranks: rank 0 reads the weights, and every rank trains them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import model
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models
from trainer import model_work as work
from trainer.ranks import run_ranks, values

ENGINES = ("ddp", "fsdp2")
METHODS: dict[str, dict[str, Any]] = {
    "fft": {},
    "lora": {"method": "lora", "lora": models.lora()},
    "lora on bf16": {"method": "lora", "lora": models.lora(), "precision": "bf16"},
}


def _folders(tmp_path: Path, *, tied: bool = True, **size: int) -> list[Path]:
    """The model, and a folder that has everything of it but the weights."""
    full = models.model_folder(tmp_path / "model", tied=tied, **size)
    shutil.copytree(full, tmp_path / "without-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    return [full, tmp_path / "without-weights"]


def _config(tmp_path: Path, **changes: Any) -> RunConfig:
    return models.run_config(
        tmp_path / "model", tmp_path / "rows", tmp_path / "out",
        mesh__processes_per_node=2, mesh__data_parallel=2, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_rank_that_has_no_weights_gets_those_of_rank_0(
    tmp_path: Path, engine: str, method: str, tied: bool
) -> None:
    folders = _folders(tmp_path, tied=tied)
    first, second = values(run_ranks(2, work.built, folders, _config(tmp_path, engine=engine, **METHODS[method])))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.tolist()) == (second[name].dtype, second[name].tolist()), name
    loaded = dict(AutoModelForCausalLM.from_pretrained(folders[0]).named_parameters())
    found = {name.removeprefix("base_model.model.").replace(".base_layer", ""): t for name, t in first.items()}
    for name, tensor in loaded.items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


def test_a_rank_without_weights_spends_no_memory_on_them(tmp_path: Path) -> None:
    small, large = _folders(tmp_path / "small"), _folders(tmp_path / "large", vocabulary=2**18)
    config = _config(tmp_path, engine="fsdp2", **METHODS["lora on bf16"])
    reads, receives = values(run_ranks(2, work.bytes_to_load, small, large, config))
    in_bf16 = (large[0] / "model.safetensors").stat().st_size / 2  # the file is fp32
    assert reads > 0.9 * in_bf16, "or this test measures nothing"
    assert receives < 0.1 * reads


def test_what_the_architecture_does_not_train_stays_frozen(tmp_path: Path) -> None:
    built = architectures.model("ernie4_5_moe")
    frozen = {name for name, parameter in built.named_parameters() if not parameter.requires_grad}
    built.save_pretrained(tmp_path / "model")
    loaded = model.load(tmp_path / "model", _config(tmp_path))
    assert frozen == {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} != set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "nope"}, "cannot be loaded, check its config.json: KeyError: 'nope'"),
        ({"num_attention_heads": 0}, "cannot be loaded, check its config.json: ZeroDivisionError"),
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
        model.load(folder, _config(tmp_path))
    assert message in str(refusal.value)


def test_activation_checkpointing_computes_every_layer_twice_and_the_same_numbers(tmp_path: Path) -> None:
    folder = _folders(tmp_path)[0]
    configs = [_config(tmp_path, activation_checkpointing=recompute) for recompute in (False, True)]
    (kept, once), (recomputed, twice) = (values(run_ranks(1, work.forwards, folder, c))[0] for c in configs)
    assert kept.keys() == recomputed.keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)
    assert (once, twice) == ([1] * 4, [2] * 4)


def test_weights_that_are_not_there_are_refused_on_every_rank(tmp_path: Path) -> None:
    without_weights = _folders(tmp_path)[1]
    for ended in run_ranks(2, work.refused, [without_weights, without_weights], _config(tmp_path, engine="ddp")):
        assert isinstance(ended.error, ModelRefused)
        assert str(ended.error).startswith(f"model {without_weights} cannot be loaded")
