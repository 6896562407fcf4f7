"""Who shards what, and in which number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.runtime.choices import Device, Engine, Method, Precision
from finetune_api.validation.predicates import find

_P = "hyperparameters.parallelism"
_ZERO = {0: Engine.DDP, 1: Engine.ZERO1, 2: Engine.ZERO2, 3: Engine.ZERO3}


def resolve_engine(spec: Mapping[str, Any], method: Method, data_parallel: int, device: Device) -> tuple[Engine, str]:
    """The engine, and why."""
    if data_parallel == 1:
        return Engine.SINGLE, "There is one replica of the model: nothing to shard or to average."
    if find(spec, f"{_P}.fsdp") is True:
        strategy = str(find(spec, f"{_P}.fsdp_sharding_strategy") or "full_shard").lower()
        if strategy == "no_shard":
            return Engine.DDP, f"{_P}.fsdp_sharding_strategy is no_shard."
        return Engine.FSDP2, f"{_P}.fsdp is true."
    if find(spec, f"{_P}.use_deepspeed") is True:
        stage = find(spec, f"{_P}.deepspeed_stage")
        if stage is None:
            return Engine.ZERO2, f"{_P}.use_deepspeed is true, and no stage is given: 2."
        return _ZERO[stage], f"{_P}.deepspeed_stage is {stage}."
    if method is Method.FFT and device is Device.CUDA:
        return Engine.FSDP2, "Full finetuning on several GPUs shards its state unless a key says otherwise."
    return Engine.DDP, "The trained state is small enough for one copy in every rank."


def resolve_precision(spec: Mapping[str, Any], device: Device) -> Precision:
    """bf16 where a GPU computes and no key says otherwise."""
    if find(spec, f"{_P}.fp16") is True:
        return Precision.FP16
    bf16 = find(spec, f"{_P}.bf16")
    if bf16 is None:
        return Precision.BF16 if device is Device.CUDA else Precision.FP32
    return Precision.BF16 if bf16 else Precision.FP32
