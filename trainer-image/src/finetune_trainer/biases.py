"""Biases of the base that are trained beside adapters: PEFT's bias. Called by adapters.py and whole_modules.py.

A layer with an adapter keeps its bias, so there is one weight, which engines treat as full finetuning does.
"""

from __future__ import annotations

from collections.abc import Collection

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from finetune_api.runtime.choices import LoraBias
from finetune_api.runtime.run_config import Lora

from .errors import ModelRefused

KEY = "training.lora.bias"


def chosen(model: PreTrainedModel, lora: Lora, layers: Collection[str]) -> dict[str, nn.Parameter]:
    """By name in `model`, which has no adapters yet: those of `layers`, which get one, or all.

    Of what full finetuning trains: PEFT also trains biases of vision and those that an architecture sets by itself.
    Raises ModelRefused if there are none.
    """
    found = trained(model, lora.bias, layers)
    if not found and lora.bias is not LoraBias.NONE and not lora.source:
        others = trained(model, LoraBias.ALL, layers)
        where, otherwise = ("in layers that get an adapter", f", or set it to {LoraBias.ALL}") if others else ("", "")
        raise ModelRefused(
            f"{KEY}: {lora.bias} trains biases, and {model.config.model_type} has none {where}".rstrip()
            + f"; set it to {LoraBias.NONE}{otherwise}"
        )
    return found


def trained(model: PreTrainedModel, bias: str, layers: Collection[str]) -> dict[str, nn.Parameter]:
    """What an adapter of this kind of `bias` has, by name in `model`; `layers` have an adapter."""
    every = {name: p for name, p in model.named_parameters() if name.endswith(".bias") and p.requires_grad}
    if bias == LoraBias.LORA_ONLY:
        return {name: p for name, p in every.items() if name.removesuffix(".bias") in layers}
    return every if bias == LoraBias.ALL else {}


def of(model: PeftModel) -> dict[str, nn.Parameter]:
    """Those that are trained, by name in `model`."""
    (config,) = model.peft_config.values()
    if getattr(config, "bias", LoraBias.NONE) == LoraBias.NONE:
        return {}
    return {
        name: p
        for name, p in model.named_parameters()
        if p.requires_grad and name.endswith(".bias") and ".lora_" not in name
    }
