"""Quantised weights are read in bf16; files that are not what config.json says are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from finetune_trainer import weights
from finetune_trainer.errors import ModelRefused
from trainer import architectures, models, quantised
from trainer.scope_work import own_class

KINDS: dict[str, tuple[str, Callable[..., None]]] = {
    "mxfp4": ("gpt_oss", quantised.save_mxfp4),
    "fp8": ("qwen3", quantised.save_fp8),
    "fp8 of experts": ("qwen3_moe", quantised.save_fp8),
}
FORMATS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "fft": ({}, torch.float32),
    "lora in bf16": ({"method": "lora", "lora": models.lora(), "precision": "bf16"}, torch.bfloat16),
    "lora in fp16": ({"method": "lora", "lora": models.lora(), "precision": "fp16"}, torch.float16),
}


@pytest.fixture(params=KINDS)
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A quantised model, and the same one in bf16."""
    kind, save = KINDS[request.param]
    save(architectures.model(kind), tmp_path / "model", tmp_path / "plain")
    return tmp_path / "model", tmp_path / "plain"


@pytest.mark.parametrize("format_", FORMATS)
def test_every_weight_is_that_of_the_model_in_bf16(saved: tuple[Path, Path], format_: str, tmp_path: Path) -> None:
    (folder, plain), (changes, dtype) = saved, FORMATS[format_]
    config = models.run_config(folder, tmp_path, tmp_path, **changes)
    found, wanted = models.loaded(folder, config), models.loaded(plain, config)
    assert found.state_dict().keys() == wanted.state_dict().keys()
    assert wanted.get_input_embeddings().weight.dtype == dtype
    for name, weight in wanted.named_parameters():
        assert found.get_parameter(name).dtype == weight.dtype
        assert torch.equal(found.get_parameter(name), weight), name


def test_the_outline_is_that_of_the_model_in_bf16(saved: tuple[Path, Path]) -> None:
    folder, plain = saved
    assert weights.outlines(folder) == weights.outlines(plain)
    assert weights.size(folder) == weights.size(plain) > 1.2 * (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("kind", "save", "options"),
    [("gpt_oss", quantised.save_mxfp4, {}), ("qwen3_moe", quantised.save_fp8, {"block": (32, 16)})],
    ids=["mxfp4", "fp8"],
)
def test_transformers_dequantises_to_the_same_bits(
    kind: str, save: Callable[..., None], options: dict[str, Any], tmp_path: Path
) -> None:
    """Where the blocks divide the shape: it reads no others."""
    save(architectures.model(kind), tmp_path / "model", tmp_path / "plain", **options)
    theirs = dict(own_class(tmp_path / "model", dtype=torch.bfloat16).named_parameters())
    for name, weight in own_class(tmp_path / "plain", dtype=torch.bfloat16).named_parameters():
        assert torch.equal(theirs[name], weight), name


def test_scales_of_fp8_may_be_powers_of_two_in_a_byte(tmp_path: Path) -> None:
    for name, dtype in (("model", torch.float8_e8m0fnu), ("plain", torch.float32)):
        quantised.save_fp8(architectures.model("qwen3"), tmp_path / name, tmp_path / "unused")
        quantised.change_tensors(tmp_path / name, in_format(f"{UP}_scale_inv", dtype))
    config = models.run_config(tmp_path, tmp_path, tmp_path)
    found, wanted = (models.loaded(tmp_path / name, config).get_parameter(UP) for name in ("model", "plain"))
    assert torch.equal(found, wanted)


def in_format(name: str, dtype: torch.dtype) -> Callable[[dict[str, Tensor]], object]:
    """Of the same powers of two."""
    return changed(name, lambda scales: scales.to(torch.float8_e8m0fnu).to(dtype))


UP = "model.layers.0.mlp.up_proj.weight"
EXPERTS = "model.layers.1.mlp.experts.down_proj"


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


def added(name: str, like: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[like].clone()})


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("mxfp4", without(f"{EXPERTS}_scales"), f"have {EXPERTS}_blocks, but not {EXPERTS}_scales; download"),
        ("mxfp4", without(f"{EXPERTS}_blocks"), f"have {EXPERTS}_scales, but not {EXPERTS}_blocks; download"),
        (
            "mxfp4",
            changed(f"{EXPERTS}_scales", lambda t: t[:, :-1]),
            f"{EXPERTS}_scales has the shape 4 x 63 x 3, and its blocks are 4 x 64 x 3",
        ),
        (
            "mxfp4",
            changed(f"{EXPERTS}_blocks", lambda t: t.flatten(-2)),
            f"{EXPERTS}_blocks has the shape 4 x 64 x 48, and blocks are experts x outputs x groups x 16",
        ),
        ("mxfp4", changed(f"{EXPERTS}_scales", Tensor.float), "has the format torch.float32, not torch.uint8"),
        ("mxfp4", added(EXPERTS, f"{EXPERTS}_bias"), f"the weight files have {EXPERTS} and {EXPERTS}_blocks"),
        (
            "mxfp4",
            changed("model.layers.0.self_attn.q_proj.weight", lambda t: t.to(torch.float8_e4m3fn)),
            "q_proj.weight has the format torch.float8_e4m3fn, which is not trained",
        ),
        ("fp8", without(f"{UP}_scale_inv"), f"the weight files have {UP}, but not {UP}_scale_inv; download"),
        ("fp8", without(UP), f"the weight files have {UP}_scale_inv, but not {UP}; download"),
        (
            "fp8",
            changed(f"{UP}_scale_inv", lambda t: t[:, :1]),
            f"{UP}_scale_inv has the shape 4 x 1, and its blocks are 4 x 2",
        ),
        ("fp8", changed(UP, Tensor.float), f"{UP}, which belongs to {UP}_scale_inv, has the format torch.float32"),
        ("fp8", changed(f"{UP}_scale_inv", lambda t: t.to(torch.uint8)), "has the format torch.uint8, not torch.bf"),
        ("fp8", changed(UP, lambda t: t.flatten()), f"{UP} has the shape 6144, no blocks"),
        ("fp8", changed(f"{UP}_scale_inv", torch.neg), f"{UP}_scale_inv has negative numbers, infinity or NaN"),
        ("fp8", changed(f"{UP}_scale_inv", lambda t: t / 0), f"{UP}_scale_inv has negative numbers, infinity or NaN"),
        ("mxfp4", changed(f"{EXPERTS}_scales", lambda t: t | 255), f"{EXPERTS}_scales has NaN, no scales; download"),
    ],
)
def test_damaged_weights_are_refused_by_name(tmp_path: Path, kind: str, change: Any, reason: str) -> None:
    made, save = KINDS[kind]
    save(architectures.model(made), tmp_path / "model", tmp_path / "plain")
    quantised.change_tensors(tmp_path / "model", change)
    assert reason in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("kind", "of_files", "entry", "reason"),
    [
        ("mxfp4", "plain", {"quant_method": "mxfp4"}, "quantised by config.json (mxfp4, quantization_c"),
        (
            "fp8",
            "plain",
            {"quant_method": "fp8", "weight_block_size": [24, 40]},
            "but not in the weight files; remove",
        ),
        ("mxfp4", "model", {"quant_method": "fp8", "weight_block_size": [24, 40]}, "but not in the weight files"),
        ("fp8", "model", {"quant_method": "mxfp4"}, "but not in the weight files"),
        (
            "mxfp4",
            "model",
            None,
            "down_proj_blocks is quantised, with its scales in model.layers.0.mlp.experts.down_",
        ),
        ("fp8", "model", None, "with its scales in model.layers.0.mlp.down_proj.weight_scale_inv, but config.json"),
        (
            "fp8",
            "model",
            {"quant_method": "fp8", "weight_block_size": [24, 24]},
            "and its blocks are 3 x 4; download",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    tmp_path: Path, kind: str, of_files: str, entry: Any, reason: str
) -> None:
    made, save = KINDS[kind]
    save(architectures.model(made), tmp_path / "model", tmp_path / "plain")
    quantised.change_config(tmp_path / of_files, quantization_config=entry)
    assert reason in refusal(tmp_path / of_files)


def test_blocks_of_another_model_are_refused(tmp_path: Path) -> None:
    quantised.save_mxfp4(architectures.model("gpt_oss"), tmp_path / "model", tmp_path / "plain")
    quantised.change_config(tmp_path / "model", intermediate_size=64)
    assert "weights have a different shape than the model: ('model.layers.0.mlp.experts." in refusal(
        tmp_path / "model"
    )


def refusal(folder: Path) -> str:
    with pytest.raises(ModelRefused, match=re.escape(f"model {folder}")) as refused:
        models.loaded(folder, models.run_config(folder, folder, folder))
    return str(refused.value)


def test_damage_is_made_of_tensors_that_are_there(tmp_path: Path) -> None:
    quantised.save_mxfp4(architectures.model("gpt_oss"), tmp_path / "model", tmp_path / "plain")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {f"{EXPERTS}_blocks", f"{EXPERTS}_scales"} <= tensors.keys() > {"lm_head.weight"}
    assert EXPERTS not in tensors
