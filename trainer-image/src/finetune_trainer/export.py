"""The files of a result in standard formats: a PEFT adapter, or a Hugging Face model folder.

Writes into a temporary folder; result.py flushes and renames it.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.runtime.choices import Method
from finetune_api.validation.uris import MODEL, Scheme

from . import model_export, sources, tensor_files
from .collectives import on_rank_0
from .files import DISK, Files, storage_errors
from .model_export import Casting, gathered
from .quantisation import KEY

ADAPTER = "default"
"""PEFT's name for the adapter."""
_DTYPE = ["dtype", "torch_dtype"]
"""Names of the key, the second of which transformers 4 wrote."""


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


@dataclass(frozen=True)
class Publication:
    """What becomes the result of a run."""

    model: PreTrainedModel | PeftModel
    """A PeftModel becomes a PEFT adapter, any other model a Hugging Face folder."""
    trained: Mapping[str, Tensor]
    """By name in `model`, sharded or not."""
    base: Path
    """Folder that the base model was loaded from: tokenizer, template and number formats are taken from it."""
    card: ModelCard
    casting: Casting


def write_result(folder: Path, publication: Publication, files: Files = DISK) -> None:
    """Write everything except the marker. Collective. Raises StorageFailed on every rank."""
    model, trained, base = publication.model, publication.trained, publication.base
    if isinstance(model, PeftModel):
        whole = {name: gathered(tensor) for name, tensor in trained.items()}
        on_rank_0(partial(_write_adapter, folder, model, whole, publication.card, files))
    else:
        model_export.write(folder, model, trained, base, publication.casting, files)
    on_rank_0(partial(_write_texts, folder, publication))


def _write_adapter(folder: Path, model: Any, whole: Mapping[str, Tensor], card: ModelCard, files: Files) -> None:
    tensors = get_peft_model_state_dict(model, dict(whole), ADAPTER, save_embedding_layers=False)
    assert len(tensors) == len(whole), f"PEFT keeps {len(tensors)} of {len(whole)} trained tensors"
    with storage_errors(folder):
        tensor_files.write(folder, "adapter_model", tensors, files)
    config = copy.copy(model.peft_config[ADAPTER])
    config.base_model_name_or_path, config.revision = _base_name(card.base_model)
    config.inference_mode = True
    # PEFT keeps the modules in a set, whose order changes from run to run; a sorted list gives identical files.
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(folder))


def _write_texts(folder: Path, publication: Publication) -> None:
    """The configs of a model are those of its base: training has changed them in memory (dtype, no cache).

    Of a quantised base the result is in bf16, which its config.json says.
    """
    base = publication.base
    configs = () if isinstance(publication.model, PeftModel) else sources.CONFIGS
    with storage_errors(folder):
        for path in sorted({path for pattern in (*configs, *sources.TOKENIZER) for path in base.glob(pattern)}):
            if path.is_dir():
                shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, folder / path.name)
        if configs and sources.quantisation(base) is not None:
            (folder / "config.json").write_text(_unquantised_config(base), encoding="utf-8")
        (folder / "README.md").write_text(_readme(publication.card), encoding="utf-8")


def _unquantised_config(base: Path) -> str:
    config = sources.model_config(base)
    del config[KEY]
    language = config.get("text_config")
    for part in (config, language if isinstance(language, dict) else {}):
        named = [key for key in _DTYPE if key in part] or (_DTYPE[:1] if part is config else [])
        part.update(dict.fromkeys(named, "bfloat16"))
    return json.dumps(config, indent=2) + "\n"


def _base_name(model: str) -> tuple[str, str | None]:
    """Name and revision by which PEFT loads the base model."""
    source = MODEL.parse(model)
    return (source.name, source.revision or None) if source.scheme is Scheme.HUB else (model, None)


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
        f"Trained on {Path(card.data).name} for {card.step:,} optimizer step{'s' * (card.step != 1)}.\n"
        f"Identity of the run: `{card.digest}`.\n{table}"
    )


_METHODS = {
    Method.FFT: "Full finetuning",
    Method.LORA: "LoRA adapter",
    Method.QLORA: "QLoRA adapter",
}
