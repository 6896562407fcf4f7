"""What the user should know of a job although nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.resource import reasons as r
from finetune_api.resource.reasons import Reason
from finetune_api.runtime.choices import Device, Method, Precision

from . import deepspeed_dictionary
from .job_settings import JobSettings


@dataclass(frozen=True)
class Note:
    """Something the user should know although nothing is wrong."""

    reason: str
    sentence: str


_DEVICES = {Device.CPU: "CPUs", Device.CUDA: "GPUs"}


def note(reason: Reason, **values: object) -> Note:
    return Note(reason.name, reason.text(**values))


def notes(job: JobSettings, method: Method, precision: Precision, device: Device) -> Iterator[Note]:
    """What was assumed, and what will be ignored."""
    if job.validation.wanted and not job.data.validation.value:
        yield note(r.VALIDATION_SKIPPED)
    variety = job.method.variety
    if variety.value and variety.value != method:
        yield note(r.VARIETY_YIELDS, key=variety.key, value=variety.value, method=method)
    if method is Method.FFT and job.lora.given:
        yield note(r.ADAPTERS_UNUSED, key=job.lora.given)
    tf32 = job.engine.tf32
    if tf32.value and (precision is not Precision.FP32 or device is Device.CPU):
        yield note(r.TF32_UNUSED, key=tf32.key, precision=precision, device=_DEVICES[device])
    dictionary = job.engine.deepspeed_config
    if deepspeed_dictionary.warms_up_otherwise(dictionary.value or {}):
        yield note(r.WARMUP_DIFFERS, key=f"{dictionary.key}.scheduler")
    offloads = next((each for each in job.engine.offload if each.value == "cpu"), None)
    if offloads and not job.pods.memory.value:
        yield note(r.HOST_MEMORY_UNASKED, key=offloads.key)
    length, limit = job.data.sequence_length, job.data.max_model_len
    if length.value and limit.value and limit.value < length.value:
        yield note(r.LENGTH_CAPPED, key=length.key, value=length.value, limit_key=limit.key, limit=limit.value)
