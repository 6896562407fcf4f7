"""Folders of quantised models, and beside each the same model in bf16 by an independent computation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

BLOCK = (24, 40)
"""Rows and columns that divide no shape of a tiny model."""
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def save_mxfp4(model: PreTrainedModel, folder: Path, plain: Path) -> None:
    """gpt-oss as it was published. The experts get random values."""
    random = np.random.default_rng(0)

    def quantised(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        experts, inputs, outputs = weight.shape
        blocks = random.integers(0, 256, (experts, outputs, inputs // 32, 16), np.uint8)
        scales = random.integers(118, 123, (experts, outputs, inputs // 32), np.uint8)
        parts = {f"{name}_blocks": torch.from_numpy(blocks), f"{name}_scales": torch.from_numpy(scales)}
        return parts, torch.from_numpy(_of_mxfp4(blocks, scales))

    _save(model, folder, plain, EXPERTS, quantised, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    change_config(folder, dtype=None)


def save_fp8(model: PreTrainedModel, folder: Path, plain: Path, block: tuple[int, int] = BLOCK) -> None:
    """As DeepSeek-V3 and the FP8 models of Qwen3 were published."""

    def quantised(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        rows, columns = (np.arange(size) // side for size, side in zip(weight.shape, block, strict=True))
        scales = np.random.default_rng(len(name)).uniform(1e-4, 1e-3, (rows[-1] + 1, columns[-1] + 1))
        factors = scales.astype(np.float32)
        each = torch.from_numpy(factors[rows][:, columns])
        codes = (weight.float() / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        product = _of_e4m3(codes.view(torch.uint8).numpy()) * each.numpy()
        return {name: codes, f"{name}_scale_inv": torch.from_numpy(factors)}, torch.from_numpy(product)

    entry = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(block)}
    _save(model, folder, plain, ("_proj.weight",), quantised, entry)
    change_config(folder, dtype=None, torch_dtype="float32")  # as transformers 4 named it, and false


def _save(
    model: PreTrainedModel, folder: Path, plain: Path, names: tuple[str, ...], quantised: Any, entry: dict[str, Any]
) -> None:
    model.to(torch.bfloat16).save_pretrained(plain)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    tensors, reference = load_file(plain / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(names)]:
        parts, whole = quantised(name, tensors.pop(name))
        tensors |= parts
        reference[name] = whole.to(torch.bfloat16).contiguous()
    assert reference
    rest = {name: tensor for name, tensor in load_file(plain / "model.safetensors").items() if name not in reference}
    save_file(rest | reference, plain / "model.safetensors", {"format": "pt"})
    save_file(
        {n: tensor.contiguous() for n, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    change_config(folder, quantization_config=entry)


def change_config(folder: Path, **changes: Any) -> None:
    """A change to None removes the key."""
    config = json.loads((folder / "config.json").read_bytes()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def change_tensors(folder: Path, changes: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    changes(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _of_mxfp4(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float64]:
    """From the bits of sign, exponent and mantissa."""
    codes = np.stack([blocks % 16, blocks // 16], axis=-1).reshape(*scales.shape[:-1], -1)
    sign, exponent, mantissa = 1.0 - 2 * (codes // 8), codes // 2 % 4, codes % 2
    values = sign * np.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1.0))
    each = np.repeat(scales, 32, axis=-1)
    return np.ascontiguousarray((values * 2.0 ** (each - 127.0)).swapaxes(1, 2))


def _of_e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    sign, exponent, mantissa = 1.0 - 2 * (codes // 128), codes // 8 % 16, codes % 8
    values = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return (sign * values).astype(np.float32)
