"""What settings of adapters exclude each other, beyond what the API's rules say. Called by resolve.py."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.runtime.choices import LoraInit
from finetune_api.runtime.patterns import is_pattern
from finetune_api.validation.problem import Problem
from finetune_api.validation.shape import quote

from .job_settings import LoraSettings, Setting

KEY = "training.lora.target_parameters"


def contradictions(lora: LoraSettings) -> Iterator[Problem]:
    """Of a job that trains adapters. Which names are of parameters of the model, only the trainer sees."""
    parameters = lora.target_parameters
    if not lora.target_modules.value and not parameters.value:
        yield Problem(f"spec.{lora.target_modules.key}", "Contradiction",
                      "target_modules names no layer, and no parameters are named, so nothing would be trained.",
                      f"Name layers, or leave it out for all, or name parameters of experts in {KEY}.")  # fmt: skip
    of_base = LoraInit(lora.init.value).changes_base
    if lora.dropout.value > 0 and of_base:
        yield Problem(f"spec.{lora.dropout.key}", "Contradiction",
                      f"dropout is {lora.dropout.value:g}, and {lora.init.key}: {lora.init.value} moves the largest "
                      "part of each weight into its adapter, so that parts of the base would be dropped.",
                      "Set it to 0, or init_lora_weights to default or gaussian.")  # fmt: skip
    yield from _no_names(lora.modules_to_save, "lm_head or embed_tokens")
    if not parameters.value:
        return
    yield from _no_names(parameters, "mlp.experts.down_proj")
    for setting, wrong, what in (
        (lora.dropout, lora.dropout.value > 0, f"dropout is {lora.dropout.value:g}"),
        (lora.dora, lora.dora.value, "use_dora is true"),
        (lora.init, of_base, f"init_lora_weights is {lora.init.value}"),
    ):
        if wrong:
            zero = {lora.dropout.key: "0", lora.dora.key: "false"}.get(setting.key, LoraInit.DEFAULT)
            yield Problem(f"spec.{setting.key}", "Contradiction",
                          f"{what}, which PEFT has for adapters on layers only, and {KEY} asks for others.",
                          f"Set it to {zero}, or leave target_parameters out.")  # fmt: skip


def _no_names(setting: Setting[list[str]], example: str) -> Iterator[Problem]:
    for name in setting.value:
        if is_pattern(name):
            yield Problem(f"spec.{setting.key}", "BadExpression",
                          f"{quote(name)} is no end of a name, and PEFT reads no expressions here.",
                          f"Write names such as {example}.")  # fmt: skip
