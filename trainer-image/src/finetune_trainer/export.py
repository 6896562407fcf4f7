"""The files of a result in standard formats: a PEFT adapter, or a Hugging Face model folder.

Writes into a temporary folder; result.py flushes and renames it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.runtime.choices import LoraBias, Method
from finetune_api.runtime.protocol import MERGED
from finetune_api.runtime.run_config import RunConfig
from finetune_api.validation.uris import MODEL, Scheme

from . import biases, decomposition, lora_files, model_export, tensor_files, texts, vocabulary, whole_modules
from .collectives import on_rank_0
from .files import DISK, Files, storage_errors
from .model_export import Casting, gathered
from .vocabulary import Growth

ADAPTER = "default"
"""PEFT's name for the adapter."""
MERGED_SENTENCE = f"\nThe folder `{MERGED}` is the base with this adapter merged into its weights.\n"
"""In the README of an adapter."""


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
    settings: Mapping[str, object] = field(default_factory=dict)
    """By the keys of a job."""
    merged: bool = False
    """Whether a merged model is going to be added to the result."""


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
        whole = _gathered_once(in_file(model, trained))
        on_rank_0(partial(_write_adapter, folder, model, whole, publication.card, files))
    else:
        model_export.write(folder, model, trained, base, publication.casting, files)
    on_rank_0(partial(_write_texts, folder, publication))


def in_file(model: PeftModel, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the file of an adapter has, by the names in `model`: a weight that two modules share, twice, as PEFT does.

    `trained`: in the values of the optimizer.
    """
    first = {parameter: name for name, parameter in model.named_parameters()}
    whole = whole_modules.state(model)
    return dict(trained) | {n: trained.get(first.get(t, n), t) for n, t in whole.items()}  # type: ignore[call-overload]


def _gathered_once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[Tensor, Tensor] = {}
    for tensor in tensors.values():
        if tensor not in found:
            found[tensor] = gathered(tensor)
    return {name: found[tensor] for name, tensor in tensors.items()}


def _write_adapter(folder: Path, model: Any, whole: Mapping[str, Tensor], card: ModelCard, files: Files) -> None:
    full = {name: whole[name] for name in whole_modules.state(model)}
    full |= {name: tensor for name, tensor in whole.items() if name.endswith(lora_files.ROWS)}
    tensors = get_peft_model_state_dict(model, dict(whole), ADAPTER, save_embedding_layers=False) | full
    assert len(tensors) == len(whole), f"PEFT keeps {len(tensors)} of {len(whole)} trained tensors"
    config = copy.copy(model.peft_config[ADAPTER])
    tensors = decomposition.as_lora(model, config, tensors)
    with storage_errors(folder):
        tensor_files.write(folder, "adapter_model", tensors, files)
    config.base_model_name_or_path, config.revision = _base_name(card.base_model)
    config.inference_mode = True
    # PEFT keeps the modules in a set, whose order changes from run to run; a sorted list gives identical files.
    config.target_modules = sorted(config.target_modules)
    config.target_parameters = sorted(config.target_parameters or ()) or None
    config.save_pretrained(str(folder))


def _write_texts(folder: Path, publication: Publication) -> None:
    texts.copy(publication.base, folder, configs=not isinstance(publication.model, PeftModel))
    with storage_errors(folder):
        text = _readme(publication.card, vocabulary.growth(publication.base))
        (folder / "README.md").write_text(text, encoding="utf-8")


def _base_name(model: str) -> tuple[str, str | None]:
    """Name and revision by which PEFT loads the base model."""
    source = MODEL.parse(model)
    return (source.name, source.revision or None) if source.scheme is Scheme.HUB else (model, None)


def _readme(card: ModelCard, growth: Growth | None) -> str:
    library = "transformers" if card.method is Method.FFT else "peft"
    metrics = {name: f"{value:.4f}" for name, value in sorted(card.metrics.items()) if value is not None}
    merged = MERGED_SENTENCE if card.merged else ""
    if growth is not None and card.method is not Method.FFT:
        merged += (
            "\nTokens were added. Before PEFT loads the adapter, give the base rows for them: "
            f"`model.resize_token_embeddings({growth.after})`.\n"
        )
    tables = f"{_table('metric', metrics)}{_table('setting', card.settings)}"
    return (
        f"---\nbase_model: {json.dumps(_base_name(card.base_model)[0])}\nlibrary_name: {library}\n"
        "pipeline_tag: text-generation\n---\n\n"
        f"# {_METHODS[card.method]} of {card.base_model}\n\n"
        f"Trained on {Path(card.data).name} for {card.step:,} optimizer step{'s' * (card.step != 1)}.\n"
        f"Identity of the run: `{card.digest}`.\n{merged}{tables}"
    )


def _table(head: str, values: Mapping[str, object]) -> str:
    rows = "".join(f"| {name} | {str(value).replace('|', chr(92) + '|')} |\n" for name, value in values.items())
    return f"\n| {head} | value |\n|---|---|\n{rows}" if rows else ""


def settings(config: RunConfig) -> dict[str, object]:
    """What a model card says of a run, by the keys of a job."""
    lora, how = config.lora, config.quantisation
    found: dict[str, object] = {
        "hyperparameters.learning_rate": config.optimizer.learning_rate,
        "hyperparameters.lr_scheduler_type": config.schedule.name,
        "precision": config.precision,
    }
    if lora is not None:
        found |= {
            "training.lora.r": lora.rank,
            "training.lora.alpha": lora.alpha,
            "training.lora.target_modules": ", ".join(lora.target_modules),
        }
        chosen = {"training.lora.use_rslora": lora.rslora, "training.lora.use_dora": lora.dora}
        found |= {key: "true" for key, value in chosen.items() if value}
        if decomposition.changes_base(lora):
            found[decomposition.KEY] = f"{lora.init}, as LoRA of twice the rank"
        if lora.bias is not LoraBias.NONE:
            found[biases.KEY] = lora.bias
        if lora.modules_to_save:
            found[whole_modules.KEY] = ", ".join(lora.modules_to_save)
        if lora.trainable_tokens:
            found["training.lora.trainable_tokens"] = ", ".join(map(json.dumps, lora.trainable_tokens))
        if lora.target_parameters:
            found["training.lora.target_parameters"] = ", ".join(lora.target_parameters)
        found |= {"training.lora.from": lora.source} if lora.source else {}
    return found if how is None else found | {"training.quantization.format": how.format}


_METHODS = {
    Method.FFT: "Full finetuning",
    Method.LORA: "LoRA adapter",
    Method.QLORA: "QLoRA adapter",
}
