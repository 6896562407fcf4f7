"""The base model: Hugging Face weights loaded into a Hugging Face model, with no missing and no unexpected keys.

Called by trainer.py on every rank. Every rank reads the files, and keeps what its engine will use (placeholders.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from finetune_api.runtime.choices import Engine, Method
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.run_config import RunConfig

from . import (
    adapters,
    architecture,
    attention,
    decomposition,
    model_export,
    placeholders,
    sources,
    token_rows,
    vocabulary,
    weights,
    whole_modules,
)
from .collectives import new_channel, on_channel, on_every_rank, on_rank_0
from .decomposition import InitialFactors
from .dora import LengthsOfRows
from .errors import ModelRefused
from .failures import exit_code_of
from .master import COMPUTE
from .placeholders import Keep, See
from .quantisation import KEY
from .quantised_base import Quantising

_NONE: Mapping[str, InitialFactors] = MappingProxyType({})
_MOST = 2
"""How many times as many parameters as numbers in the files are not refused before they are looked for."""
_FLOATING = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
_LAYER_DROP = ("layerdrop", "decoder_layerdrop")
"""In config.json, as architectures call the share of layers that a step leaves out."""
_MAX_LISTED = 5
"""Keys named in a message; the rest are counted."""


def load(
    folder: Path, config: RunConfig, keep: Keep, device: torch.device, initial: Mapping[str, InitialFactors] = _NONE
) -> PreTrainedModel:
    """The model in training mode: placeholders of its weights, of which this rank has what it keeps. Collective.

    A base is quantised on `device`. Weights of layers with `initial` factors are what these leave of them. Raises
    ModelRefused on every rank.
    """
    loaded: list[PreTrainedModel] = []
    with on_channel(new_channel("loading")):  # one rank may be slower than the time-out of another channel
        on_every_rank(lambda: loaded.append(_loaded(folder, config, keep, device, initial)))
    model = loaded[0]
    on_rank_0(partial(_require_trained_formats, folder, model, config.method))
    prepare(model, config)
    return model


def show(folder: Path, config: RunConfig, see: See) -> None:
    """Give `see` every whole weight, one at a time, as the model computes with them. Raises ModelRefused."""
    outline = unloaded(folder)
    wide = adapters.in_full(outline, config.lora)

    def emptied(name: str, weight: Tensor) -> Tensor:
        see(name, weight)
        return weight.new_empty(0)

    with _refused(folder), placeholders.replacing(emptied, _tied_shapes(outline)):
        model, report = _read(folder, storage_dtype(config), wide)
    _require_complete(folder, report)
    placeholders.replace(model, emptied)


def _loaded(
    folder: Path, config: RunConfig, keep: Keep, device: torch.device, initial: Mapping[str, InitialFactors]
) -> PreTrainedModel:
    outline, how = unloaded(folder), config.quantisation
    _require_all_layers(folder, outline, config.engine)
    whole = whole_modules.chosen(outline, config.lora)
    lengths = LengthsOfRows(outline, device) if config.lora is not None and config.lora.dora else None
    see = None if lengths is None else lengths.see
    quantising = None if how is None else Quantising(outline, how, keep, see, device, whole)
    of_tokens = token_rows.RowsOfTokens(outline, config.lora, whole)
    kept = partial(_kept, keep, see) if quantising is None else quantising.keep
    stored = decomposition.residuals(kept, initial, device)

    def named(name: str, weight: Tensor) -> Tensor:
        of_tokens.see(name, weight)
        return stored(name, weight)

    with _refused(folder), placeholders.replacing(named, _tied_shapes(outline)):
        model, report = _read(folder, storage_dtype(config), adapters.in_full(outline, config.lora))
    _require_complete(folder, report)
    whole_modules.require_ties_as_expected(whole_modules.chosen(model, config.lora), whole)
    placeholders.replace(model, named)
    _freeze_as_built(model, outline)
    if quantising is not None:
        quantising.install(model)
    if lengths is not None:
        lengths.give(model)
    of_tokens.give(model)
    return model


def _kept(keep: Keep, see: See | None, name: str, weight: Tensor) -> Tensor:
    if see is not None:
        see(name, weight)
    return keep(weight)


def prepare(model: PreTrainedModel, config: RunConfig) -> None:
    """Set `model` up for training."""
    architecture.freeze_other_parts(model)
    if COMPUTE[config.precision] != storage_dtype(config):
        architecture.cast_buffers(model, COMPUTE[config.precision])
    attention.use(model)
    model.config.use_cache = False  # the KV cache is for generation only
    if config.method is not Method.FFT and not architecture.have_routers(adapters.in_full(model, config.lora)):
        architecture.without_router_loss(model)  # routers get no adapters
    model.train()


def _require_all_layers(folder: Path, outline: PreTrainedModel, engine: Engine) -> None:
    """LayerDrop leaves out other layers on each rank: those that gather weights for a layer would wait forever."""
    settings = outline.config.get_text_config()
    dropped = [key for key in _LAYER_DROP if getattr(settings, key, None)]
    if dropped and engine not in {Engine.SINGLE, Engine.DDP}:
        raise ModelRefused(
            f"model {folder}: {dropped[0]} in config.json is {getattr(settings, dropped[0])}, so each rank would "
            "leave out other layers, whose weights the ranks share; set it to 0, or in hyperparameters.parallelism "
            "use_deepspeed and fsdp to false"
        )


def _tied_shapes(outline: PreTrainedModel) -> set[torch.Size]:
    """Of weights that transformers ties if their values are the same: it needs them whole."""
    tied: Mapping[str, str] = getattr(outline, "all_tied_weights_keys", {})
    return {outline.get_parameter_or_buffer(name).shape for pair in tied.items() for name in pair}


def _read(folder: Path, dtype: torch.dtype, wide: Collection[str]) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """The model, and the mismatches between its files and its architecture. Weights of `wide` names are in fp32."""
    quiet: Any = transformers.utils.logging  # untyped
    quiet.set_verbosity_error()  # its warnings about mismatches are errors here
    quiet.disable_progress_bar()
    settings, quantisation = _settings(folder), sources.quantisation(folder)
    options: dict[str, Any] = {
        "dtype": dtype,
        "output_loading_info": True,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # the report names them
    }
    made = architecture.model_class(settings)
    if quantisation is None and vocabulary.growth(folder) is None:
        with _in_fp32(made, wide):
            found = architecture.auto_class(settings).from_pretrained(folder, **options)
    else:
        with _in_fp32(made, wide), weights.opened(folder, quantisation) as tensors:
            found = made.from_pretrained(None, config=settings, state_dict=tensors, **options)
    return cast("tuple[PreTrainedModel, Mapping[str, Any]]", found)


@contextmanager
def _in_fp32(made: Any, names: Collection[str]) -> Iterator[None]:
    """The class `made` loads weights of these names in fp32 meanwhile, as it does what its architecture keeps so."""
    method, wide = "_get_dtype_plan", {f"^{re.escape(name)}$": torch.float32 for name in names}
    own, inherited = getattr(made, method), method not in vars(made)
    setattr(made, method, lambda model, dtype: own(model, dtype) | wide)  # from_pretrained makes the instance
    try:
        yield
    finally:
        delattr(made, method) if inherited else setattr(made, method, own)


@contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """Whatever transformers raises, the files of the model are to blame, unless memory or storage is."""
    try:
        yield
    except Exception as error:
        if exit_code_of(error) is not Exit.CRASHED:
            raise
        what = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
        raise ModelRefused(f"model {folder} cannot be loaded, check its config.json: {what}") from error


def _settings(folder: Path) -> PreTrainedConfig:
    """config.json, by the class that transformers has for it, without its quantisation.

    Code in the folder is never run.
    """
    content = json.loads((folder / "config.json").read_bytes())
    if "auto_map" in content and content.get("model_type") not in CONFIG_MAPPING:
        raise ModelRefused(
            f"model {folder} brings its own code (auto_map in config.json), which is never run; choose a model of "
            f"an architecture that transformers {transformers.__version__} has"
        )
    found: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(found, KEY):
        delattr(found, KEY)  # weights.py dequantises, and transformers must not
    return found


def _require_plausible(folder: Path, settings: PreTrainedConfig) -> None:
    """Without this check, a model of a million layers would be built for hours before its weights were missed."""
    layers, tensors = getattr(settings.get_text_config(), "num_hidden_layers", 0), len(weights.outlines(folder))
    if layers > tensors > 0:
        raise ModelRefused(f"model {folder}: config.json has {layers:,} layers, the weight files {tensors:,} tensors")


def _require_fitting_files(folder: Path, outline: PreTrainedModel) -> None:
    """Without this check, memory would be taken for whatever config.json says."""
    tensors = weights.outlines(folder)
    wanted, found = sum(p.numel() for p in outline.parameters()), sum(prod(each.shape) for each in tensors.values())
    if wanted > _MOST * found > 0:
        raise ModelRefused(
            f"model {folder}: config.json describes {wanted:,} parameters, the weight files have {found:,}; check "
            "that config.json belongs to these weights"
        )


def _require_trained_formats(folder: Path, loaded: PreTrainedModel, method: Method) -> None:
    """Without this check, integers would be taken for weights, and what was trained cut off to them at the end."""
    stored = {name: (name, each.dtype) for name, each in weights.outlines(folder).items()}
    if method is Method.FFT:  # also what transformers has put together from several tensors
        for group in model_export.groups(loaded, model_export.weights_of(loaded), folder):
            stored |= dict.fromkeys(group.parameters, (next(iter(group.tensors)), group.dtype))
    for parameter, _ in loaded.named_parameters():
        name, dtype = stored.get(parameter, (parameter, torch.float32))
        if dtype not in _FLOATING:
            raise ModelRefused(
                f"model {folder}: {name} has the format {dtype}, which is not trained; save the model again in "
                "bfloat16 or float32: model.save_pretrained(folder)"
            )


def unloaded(folder: Path) -> PreTrainedModel:
    """The model without memory, on the meta device; what is never trained is frozen. Raises ModelRefused."""
    with _refused(folder):
        settings = _settings(folder)
        _require_plausible(folder, settings)
        with torch.device("meta"):
            model: PreTrainedModel = architecture.auto_class(settings).from_config(settings)
        _require_fitting_files(folder, model)
    architecture.freeze_other_parts(model)
    return model


def _freeze_as_built(model: PreTrainedModel, outline: PreTrainedModel) -> None:
    """Freeze what the architecture does not train, such as a router's bias: loading has unfrozen it."""
    frozen = {name for name, parameter in outline.named_parameters() if not parameter.requires_grad}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def storage_dtype(config: RunConfig) -> torch.dtype:
    """Weights of full finetuning are stored in fp32, a frozen base in the compute dtype."""
    return torch.float32 if config.method is Method.FFT else COMPUTE[config.precision]


def _require_complete(folder: Path, report: Mapping[str, Any]) -> None:
    """Without this check, a missing weight would be initialised at random with only a warning."""
    for mismatch, sentence in _SENTENCES.items():
        keys = sorted(str(key) for key in report.get(mismatch) or ())
        if keys:
            more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
            raise ModelRefused(
                f"model {folder}: {sentence}: {', '.join(keys[:_MAX_LISTED])}{more}; save the model again with "
                "model.save_pretrained(folder), and check that config.json belongs to these weights"
            )


_SENTENCES = {
    "missing_keys": "weights are missing",
    "unexpected_keys": "the weight files have tensors that the model does not have",
    "mismatched_keys": "weights have a different shape than the model",
    "error_msgs": "weights could not be converted",
}
