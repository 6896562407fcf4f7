"""What the user should know of a job although nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.resource.aliases import LENGTH, LORA_TARGETS
from finetune_api.runtime.choices import Method
from finetune_api.validation.predicates import find

from .facts import Note, first, get

_V = "training.validation"


def notes(spec: Mapping[str, Any], method: Method) -> Iterator[Note]:
    """What was assumed, and what will be ignored."""
    if _wants_validation(spec) and not find(spec, "data.validation_path"):
        yield Note(
            "ValidationSkipped",
            "data.validation_path is not given, so nothing is evaluated and the last checkpoint is the result. "
            "Rows are never split off silently; set training.validation.enabled to false to silence this.",
        )
    variety = find(spec, "algorithm.variety")
    if variety and variety != method:
        yield Note("VarietyYields", f"algorithm.variety is {variety}, but other keys say {method}.")
    targets = first(spec, LORA_TARGETS)
    if method is Method.FFT and targets:
        yield Note("AdaptersUnused", f"{targets.path} is given, but full finetuning has no adapters.")
    length, limit = first(spec, LENGTH), find(spec, "model_config.max_model_len")
    if length and limit and limit < length.value:
        yield Note("LengthCapped", f"{length.path} is {length.value}, but model_config.max_model_len is {limit}.")


def _wants_validation(spec: Mapping[str, Any]) -> bool:
    enabled, strategy = get(spec, True, f"{_V}.enabled"), get(spec, "steps", f"{_V}.evaluation_strategy")
    return bool(enabled) and strategy != "no"
