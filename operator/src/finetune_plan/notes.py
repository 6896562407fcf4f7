"""What the user should know of a job although nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.runtime.choices import Method

from .job_settings import JobSettings


@dataclass(frozen=True)
class Note:
    """Something the user should know although nothing is wrong."""

    reason: str
    sentence: str


def notes(job: JobSettings, method: Method) -> Iterator[Note]:
    """What was assumed, and what will be ignored."""
    if job.validation.wanted and not job.data.validation.value:
        yield Note(
            "ValidationSkipped",
            "data.validation_path is not given, so nothing is evaluated and the last checkpoint is the result. "
            "Rows are never split off silently; set training.validation.enabled to false to silence this.",
        )
    if not job.output.value:
        yield Note("OutputNotKept", "output.uri is not given: on a cluster the result ends with the pods.")
    variety = job.method.variety
    if variety.value and variety.value != method:
        yield Note("VarietyYields", f"{variety.key} is {variety.value}, but other keys say {method}.")
    targets = job.lora.target_modules
    if method is Method.FFT and targets.key:
        yield Note("AdaptersUnused", f"{targets.key} is given, but full finetuning has no adapters.")
    length, limit = job.data.sequence_length, job.data.max_model_len
    if length.value and limit.value and limit.value < length.value:
        yield Note("LengthCapped", f"{length.key} is {length.value}, but {limit.key} is {limit.value}.")
