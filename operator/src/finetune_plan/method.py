"""What is trained: full finetuning, LoRA or QLoRA.

Published files define it in five places that do not always agree. The order below satisfies each of them; the rules
refuse contradictions between explicit keys first (finetune_api.validation.rules).
"""

from __future__ import annotations

from finetune_api.runtime.choices import Method

from .job_settings import LoraSettings, MethodSettings

_BY_MODE = {"fft": Method.FFT, "full": Method.FFT, "full_finetune": Method.FFT,
            "lora": Method.LORA, "qlora": Method.QLORA}  # fmt: skip
_BY_TRAIN_KIND = {"fft": Method.FFT, "peft": Method.LORA}
_BY_VARIETY = {method.value: method for method in Method}
_BY_TRAINER_MODE = {"full": Method.FFT, "lora": Method.LORA, "qlora": Method.QLORA}


def resolve_method(given: MethodSettings, lora: LoraSettings) -> tuple[Method, str]:
    """The method, and the sentence that names the key which decided it."""
    if given.use_qlora.value is True:
        return Method.QLORA, f"{given.use_qlora.key} is true."
    for setting, meanings in (
        (given.mode, _BY_MODE),
        (given.train_kind, _BY_TRAIN_KIND),
        (given.variety, _BY_VARIETY),
        (given.trainer_mode, _BY_TRAINER_MODE),
    ):
        if setting.value in meanings:
            return _refine(given, meanings[setting.value], f"{setting.key} is {setting.value}.")
    if lora.given:
        return Method.LORA, f"{lora.given} is given, and no key names a method."
    return Method.FFT, "No key names a method; full finetuning is the default."


def _refine(given: MethodSettings, method: Method, reason: str) -> tuple[Method, str]:
    """variety: qlora makes adapters quantised, unless use_qlora is false."""
    if method is Method.LORA and given.variety.value == "qlora" and given.use_qlora.value is None:
        return Method.QLORA, f"{reason[:-1]} and {given.variety.key} is qlora."
    return method, reason
