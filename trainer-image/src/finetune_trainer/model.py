"""The base model: Hugging Face weights into a Hugging Face model, nothing missing and nothing left over.

Called by job.py on every rank. Only rank 0 reads the weights: eight ranks of a node that each read a model of
32 billion parameters in fp32 would want a terabyte of memory. The others make the same model of memory that
nobody has touched, which costs nothing, and their engine fills it from rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from finetune_api.runtime.choices import Method, Precision
from finetune_api.runtime.run_config import RunConfig

from .agreement import first_rank
from .errors import ModelRefused

_SHOWN = 5
"""Keys named in a message; the rest are counted."""


@dataclass(frozen=True)
class Outline:
    """What the other ranks cannot know of rank 0's model by its config.json alone."""

    formats: Mapping[str, torch.dtype]
    """Of the parameters by name: some architectures keep a few in fp32."""
    buffers: Mapping[str, Tensor]


def load(folder: Path, config: RunConfig) -> PreTrainedModel:
    """The model on the CPU, in training mode; its weights are arbitrary on every rank but 0. Collective.

    Raises ModelRefused on every rank.
    """
    dtype = storage_dtype(config)
    whole: list[PreTrainedModel] = []

    def read() -> Outline:
        found, report = _read(folder, dtype)
        _require_complete(folder, report)
        whole.append(found)
        return Outline({n: p.dtype for n, p in found.named_parameters()}, dict(found.named_buffers()))

    outline = first_rank(read)
    model = whole[0] if whole else _hollow(folder, dtype, outline)
    model.config.use_cache = False  # keys and values are kept for generation only
    model.train()
    if config.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _hollow(folder: Path, dtype: torch.dtype, outline: Outline) -> PreTrainedModel:
    """The model of an outline, its weights allocated and never written."""
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, dtype=dtype)  # type: ignore[no-untyped-call]
    model.tie_weights()  # otherwise a part of the initialisation
    for name, parameter in model.named_parameters():
        if parameter.dtype != outline.formats[name]:
            parameter.data = torch.empty_like(parameter, dtype=outline.formats[name])
    for name, buffer in model.named_buffers():
        buffer.data = outline.buffers[name]
    return model


def _read(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model, and what did not fit between its files and its architecture."""
    quiet: Any = transformers.utils.logging  # untyped
    quiet.set_verbosity_error()  # what its report warns of is an error here
    quiet.disable_progress_bar()
    try:
        found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they come with the report, by name
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelRefused(f"model {folder} cannot be loaded: {error}") from error
    return cast("tuple[PreTrainedModel, Mapping[str, Any]]", found)


def storage_dtype(config: RunConfig) -> torch.dtype:
    """Trained weights are kept in fp32, whatever is computed in; a frozen base only has to be computed with."""
    frozen = config.method is Method.LORA
    return torch.bfloat16 if frozen and config.precision is Precision.BF16 else torch.float32


def _require_complete(folder: Path, report: Mapping[str, Any]) -> None:
    """A weight that the folder lacks would be trained from random numbers without a word."""
    for kind, sentence in _SENTENCES.items():
        keys = sorted(str(key) for key in report.get(kind) or ())
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            raise ModelRefused(
                f"model {folder}: {sentence}: {', '.join(keys[:_SHOWN])}{more}; save the model again with "
                "model.save_pretrained(folder), and check that config.json belongs to these weights"
            )


_SENTENCES = {
    "missing_keys": "the weights lack what the model needs",
    "unexpected_keys": "the weights hold what the model does not know",
    "mismatched_keys": "weights have another shape than the model",
    "error_msgs": "weights could not be converted",
}
