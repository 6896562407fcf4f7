"""The files of a result in standard formats: a PEFT adapter, or a Hugging Face model folder.

Writes into a temporary folder; result.py flushes and renames it.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import RunConfig
from finetune_api.validation.uris import MODEL, Scheme

from . import rounding
from .collectives import rank

ADAPTER = "default"
"""PEFT's name for the adapter."""
SHARD_SIZE = "5GB"
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip


@dataclass(frozen=True)
class ModelCard:
    """Content of the result's README.md."""

    base_model: str
    """As in job.model."""
    method: Method
    data: str
    """As in job.data; only its file name is shown."""
    digest: str
    step: int
    """Optimizer steps behind the weights."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)


def gather(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Full tensors on the CPU of rank 0, gathered one by one; empty on the other ranks. Collective."""
    gathered: dict[str, Tensor] = {}
    for name, tensor in named:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            gathered[name] = full.detach().to("cpu", copy=True)
    return gathered


def in_dtype_of(base: Path, state: dict[str, Tensor], config: RunConfig, step: int) -> dict[str, Tensor]:
    """The weights of `state`, which it empties, as they are published: in the dtype of the base model.

    In bf16 they have the bits with which a run that computes in bf16 has evaluated them at `step`.
    """
    dtype = _dtype(base)
    to_bf16, to_nearest = rounding.to_bf16(config, torch.device("cpu")), rounding.NearestRounding()
    rounded: dict[str, Tensor] = {}
    for name in list(state):
        weight = state.pop(name).contiguous()
        rounded[name] = torch.empty_like(weight, dtype=dtype)
        cast = to_bf16 if (weight.dtype, dtype) == (torch.float32, torch.bfloat16) else to_nearest
        cast.round(weight, rounded[name], name=name, start=0, step=step)
    return rounded


def write_result(
    folder: Path, model: PreTrainedModel | PeftModel, state: Mapping[str, Tensor], base: Path, card: ModelCard
) -> None:
    """Write everything except the marker. `state`: trained tensors by their names in `model`, on the CPU.

    `base` is the folder the base model was loaded from: tokenizer, template and dtype are taken from it.
    """
    if isinstance(model, PeftModel):
        _write_adapter(folder, model, state, card)
    else:
        _write_model(folder, model, state, base)
    _copy_tokenizer(base, folder)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _write_adapter(folder: Path, model: Any, state: Mapping[str, Tensor], card: ModelCard) -> None:
    tensors = get_peft_model_state_dict(model, dict(state), ADAPTER, save_embedding_layers=False)
    assert len(tensors) == len(state), f"PEFT keeps {len(tensors)} of {len(state)} trained tensors"
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path, config.revision = _base_name(card.base_model)
    config.inference_mode = True
    # PEFT keeps the modules in a set, whose order changes from run to run; a sorted list gives identical files.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def _write_model(folder: Path, model: PreTrainedModel, state: Mapping[str, Tensor], base: Path) -> None:
    """The base model with new weights.

    Both config files are copied from the base: training has changed them in memory (dtype, no cache).
    """
    weights = _untied(model, state)
    model.save_pretrained(folder, state_dict=_buffers(model, weights) | weights, max_shard_size=SHARD_SIZE)
    for name in ("config.json", "generation_config.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def _untied(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the aliases of tied weights: loading ties them again."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    return {name: tensor for name, tensor in state.items() if tied.get(name) not in state}


def _buffers(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Persistent buffers, such as a router's bias correction."""
    names = {name for name, _ in model.named_buffers()} - state.keys()
    return {name: tensor.cpu() for name, tensor in model.state_dict().items() if name in names}


def _dtype(base: Path) -> torch.dtype:
    """dtype of the base model in its config.json; fp32 if that has none."""
    config = json.loads((base / "config.json").read_bytes())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    assert isinstance(dtype, torch.dtype), f"{base}/config.json has the dtype {name!r}"
    return dtype


def _base_name(model: str) -> tuple[str, str | None]:
    """Name and revision by which PEFT loads the base model."""
    source = MODEL.parse(model)
    return (source.name, source.revision or None) if source.scheme is Scheme.HUB else (model, None)


def _copy_tokenizer(base: Path, folder: Path) -> None:
    for path in sorted({path for pattern in _TOKENIZER for path in base.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def _readme(card: ModelCard) -> str:
    library = "transformers" if card.method is Method.FFT else "peft"
    metrics = "".join(
        f"| {name} | {value:.4f} |\n" for name, value in sorted(card.metrics.items()) if value is not None
    )
    table = f"\n| metric | value |\n|---|---|\n{metrics}" if metrics else ""
    return (
        f"---\nbase_model: {json.dumps(_base_name(card.base_model)[0])}\nlibrary_name: {library}\n"
        "pipeline_tag: text-generation\n---\n\n"
        f"# {_METHODS[card.method]} of {card.base_model}\n\n"
        f"Trained on {Path(card.data).name} for {card.step:,} optimizer steps.\n"
        f"Identity of the run: `{card.digest}`.\n{table}"
    )


_METHODS = {
    Method.FFT: "Full finetuning",
    Method.LORA: "LoRA adapter",
    Method.QLORA: "QLoRA adapter",
}
