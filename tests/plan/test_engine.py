"""Which keys decide the engine."""

from __future__ import annotations

import pytest

from builders import Json, resource
from finetune_api.runtime.choices import Device, Engine, Method
from finetune_plan.engine import resolve_engine
from finetune_plan.job_settings import read

P = "hyperparameters.parallelism"
CASES: dict[str, tuple[Json, Method, Device, int, Engine, str]] = {
    "one replica needs none": ({f"{P}.fsdp": True}, Method.FFT, Device.CUDA, 1, Engine.SINGLE, "one replica"),
    "full finetuning on several GPUs is sharded": ({}, Method.FFT, Device.CUDA, 8, Engine.FSDP2, "shards its state"),
    "unless fsdp is false": ({f"{P}.fsdp": False}, Method.FFT, Device.CUDA, 8, Engine.DDP, f"{P}.fsdp is false"),
    "adapters are not sharded": ({}, Method.LORA, Device.CUDA, 8, Engine.DDP, "small enough"),
    "unless fsdp is true": ({f"{P}.fsdp": True}, Method.LORA, Device.CUDA, 8, Engine.FSDP2, f"{P}.fsdp is true"),
    "no_shard is plain data parallelism": (
        {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "NO_SHARD"}, Method.FFT, Device.CUDA, 8, Engine.DDP,
        "is no_shard"),
    "processes on CPUs are not sharded": ({}, Method.FFT, Device.CPU, 4, Engine.DDP, "small enough"),
    "DeepSpeed without a stage is stage 2": (
        {f"{P}.use_deepspeed": True}, Method.FFT, Device.CUDA, 8, Engine.ZERO2, "no stage is given: 2"),
    "DeepSpeed counts although fsdp is false": (
        {f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3, f"{P}.fsdp": False}, Method.FFT, Device.CUDA, 8,
        Engine.ZERO3, f"{P}.deepspeed_stage is 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_engine(case: str) -> None:
    changes, method, device, replicas, engine, reason = CASES[case]
    found, why = resolve_engine(read(resource(changes)).engine, method, replicas, device)
    assert (found, reason in why) == (engine, True), why
