"""What is trained: full finetuning, LoRA or QLoRA.

Published files say it in five places that do not always agree. The order below satisfies each of them;
contradictions between explicit keys are refused before (finetune_api.validation.rules).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.resource.aliases import LORA_ALPHA, LORA_DROPOUT, LORA_R, LORA_TARGETS
from finetune_api.runtime.choices import Method
from finetune_api.validation.predicates import find

from .facts import first

_BY_MODE = {"fft": Method.FFT, "full": Method.FFT, "full_finetune": Method.FFT,
            "lora": Method.LORA, "qlora": Method.QLORA}  # fmt: skip
_BY_TRAIN_KIND = {"fft": Method.FFT, "peft": Method.LORA}
_BY_TRAINER_MODE = {"full": Method.FFT, "lora": Method.LORA, "qlora": Method.QLORA}


def resolve_method(spec: Mapping[str, Any]) -> tuple[Method, str]:
    """The method, and the sentence that names the key which decided it."""
    if find(spec, "training.use_qlora") is True:
        return Method.QLORA, "training.use_qlora is true."
    for path, meanings in (
        ("training.mode", _BY_MODE),
        ("hyperparameters.train_kind", _BY_TRAIN_KIND),
        ("algorithm.variety", {m.value: m for m in Method}),
        ("policy.trainer_mode", _BY_TRAINER_MODE),
    ):
        value = find(spec, path)
        if value in meanings:
            return _refine(spec, meanings[value], f"{path} is {value}.")
    block = first(spec, (*LORA_R, *LORA_ALPHA, *LORA_DROPOUT, *LORA_TARGETS))
    if block:
        return Method.LORA, f"{block.path} is given, and no key names a method."
    return Method.FFT, "No key names a method; full finetuning is the default."


def _refine(spec: Mapping[str, Any], method: Method, reason: str) -> tuple[Method, str]:
    """variety: qlora makes adapters quantised, unless use_qlora says no."""
    quantised = find(spec, "algorithm.variety") == "qlora" and find(spec, "training.use_qlora") is None
    if method is Method.LORA and quantised:
        return Method.QLORA, f"{reason[:-1]} and algorithm.variety is qlora."
    return method, reason
