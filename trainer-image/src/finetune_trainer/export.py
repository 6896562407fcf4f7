"""The files of a result, in the formats other tools read: a PEFT adapter, or a Hugging Face model folder.

Writes into a folder that nobody reads yet; result.py makes it durable and puts it in place.
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
from finetune_api.validation.uris import MODEL, Scheme

from .agreement import rank

ADAPTER = "default"
"""PEFT's name for the one adapter we train."""
SHARD_SIZE = "5GB"
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a reader of the result wants to know."""

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
    """Whole tensors on the CPU of rank 0, one after the other; empty on the other ranks. Collective."""
    whole: dict[str, Tensor] = {}
    for name, tensor in named:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if rank() == 0:
            whole[name] = full.detach().to("cpu", copy=True)
    return whole


def write_result(
    folder: Path, model: PreTrainedModel | PeftModel, state: Mapping[str, Tensor], base: Path, card: Card
) -> None:
    """Write everything but the marker. `state`: trained tensors by their names in `model`, on the CPU.

    `base` is the folder the base model was loaded from: tokenizer, template and number format come from there.
    """
    if isinstance(model, PeftModel):
        _write_adapter(folder, model, state, card)
    else:
        _write_model(folder, model, state, base)
    _copy_tokenizer(base, folder)
    (folder / "README.md").write_text(_readme(card), encoding="utf-8")


def _write_adapter(folder: Path, model: Any, state: Mapping[str, Tensor], card: Card) -> None:
    tensors = get_peft_model_state_dict(model, dict(state), ADAPTER, save_embedding_layers=False)
    assert len(tensors) == len(state), f"PEFT keeps {len(tensors)} of {len(state)} trained tensors"
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path, config.revision = _base_name(card.base_model)
    config.inference_mode = True
    # PEFT holds the modules as a set, whose order changes from run to run; a list gives the same file each time.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def _write_model(folder: Path, model: PreTrainedModel, state: Mapping[str, Tensor], base: Path) -> None:
    """The base model with other weights, in its own number format: training keeps fp32 copies for the
    optimizer's sake, and a result twice the size of its base would surprise whoever serves it.

    Both config files are the base's own: in memory, training has changed them (number format, no cache).
    """
    dtype = _dtype(base)
    whole = {name: _in(dtype, tensor) for name, tensor in _untied(model, state).items()}
    model.save_pretrained(folder, state_dict=_buffers(model, whole) | whole, max_shard_size=SHARD_SIZE)
    for name in ("config.json", "generation_config.json"):
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def _untied(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the second names of tied weights: loading ties them again."""
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", {})
    return {name: tensor for name, tensor in state.items() if tied.get(name) not in state}


def _buffers(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers that belong to the model's files, such as a router's bias correction."""
    names = {name for name, _ in model.named_buffers()} - state.keys()
    return {name: tensor.cpu() for name, tensor in model.state_dict().items() if name in names}


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _dtype(base: Path) -> torch.dtype:
    """Number format of the base model by its config.json; fp32 where that says nothing."""
    config = json.loads((base / "config.json").read_bytes())
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    assert isinstance(dtype, torch.dtype), f"{base}/config.json names the number format {name!r}"
    return dtype


def _base_name(model: str) -> tuple[str, str | None]:
    """Name and revision under which PEFT finds the base model again."""
    source = MODEL.parse(model)
    return (source.name, source.revision or None) if source.scheme is Scheme.HUB else (model, None)


def _copy_tokenizer(base: Path, folder: Path) -> None:
    for path in sorted({path for pattern in _TOKENIZER for path in base.glob(pattern)}):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, folder / path.name)


def _readme(card: Card) -> str:
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
