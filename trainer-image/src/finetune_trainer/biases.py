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
    if lora.bias is LoraBias.NONE:
        return {}
    every = {name: p for name, p in model.named_parameters() if name.endswith(".bias") and p.requires_grad}
    of_layers = {name: p for name, p in every.items() if name.removesuffix(".bias") in layers}
    found = every if lora.bias is LoraBias.ALL else of_layers
    if not found and not lora.source:
        where, otherwise = ("in layers that get an adapter", f", or set it to {LoraBias.ALL}") if every else ("", "")
        raise ModelRefused(
            f"{KEY}: {lora.bias} trains biases, and {model.config.model_type} has none {where}".rstrip()
            + f"; set it to {LoraBias.NONE}{otherwise}"
        )
    return found


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
