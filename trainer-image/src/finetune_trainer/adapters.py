"""LoRA adapters on a frozen base, through PEFT: other tools read its names and files.

Called by trainer.py where the method is LoRA.
"""

from __future__ import annotations

from typing import cast

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune_api.runtime.run_config import Lora

from .errors import ModelRefused

ALL_LINEAR = "all-linear"
"""Every linear layer but the output head."""


def attach(model: PreTrainedModel, lora: Lora) -> PeftModel:
    """The model with adapters; only they require gradients. They are fp32, whatever the dtype of the base.

    Raises ModelRefused if the model lacks a target module.
    """
    everything = tuple(lora.target_modules) == (ALL_LINEAR,)
    if not everything:
        _require_targets(model, lora.target_modules)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=cast("int", lora.alpha),  # PEFT accepts floats, against its annotation
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if everything else list(lora.target_modules),
        task_type=TaskType.CAUSAL_LM,
    )
    return cast("PeftModel", get_peft_model(model, settings))


def _require_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    """PEFT accepts the list if one name matches; a typo in another would silently train fewer modules."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if missing:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ModelRefused(
            f"training.lora.target_modules: the model has no module {', '.join(missing)}; its linear modules are "
            f"{known}; correct the name, or set {ALL_LINEAR}"
        )
