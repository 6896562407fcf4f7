"""Which keys decide the engine."""

from __future__ import annotations

import pytest

from builders import Json, resource
from finetune_api.runtime.choices import Device, Engine, Method
from finetune_plan.engine import resolve_engine
from finetune_plan.job_settings import read
from finetune_plan.layout import Layout

P = "hyperparameters.parallelism"
HYBRID = {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "hybrid_shard"}
CASES: dict[str, tuple[Json, Method, Device, tuple[int, int], Engine, str]] = {
    "one replica needs none": ({f"{P}.fsdp": True}, Method.FFT, Device.CUDA, (1, 1), Engine.SINGLE, "one replica"),
    "full finetuning on several GPUs is sharded": ({}, Method.FFT, Device.CUDA, (1, 8), Engine.FSDP2, "shards its"),
    "unless fsdp is false": ({f"{P}.fsdp": False}, Method.FFT, Device.CUDA, (1, 8), Engine.DDP, f"{P}.fsdp is false"),
    "adapters are not sharded": ({}, Method.LORA, Device.CUDA, (1, 8), Engine.DDP, "small enough"),
    "unless fsdp is true": ({f"{P}.fsdp": True}, Method.LORA, Device.CUDA, (1, 8), Engine.FSDP2, f"{P}.fsdp is true"),
    "no_shard is plain data parallelism": (
        {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "NO_SHARD"}, Method.FFT, Device.CUDA, (1, 8), Engine.DDP,
        "is no_shard"),
    "hybrid sharding shards inside nodes": (HYBRID, Method.FFT, Device.CUDA, (2, 4), Engine.HSDP, "is hybrid_shard."),
    "on one node it is full sharding": (HYBRID, Method.FFT, Device.CUDA, (1, 8), Engine.FSDP2, "there is one node"),
    "with one rank a node it is DDP": (HYBRID, Method.FFT, Device.CUDA, (4, 1), Engine.DDP, "nodes have one rank"),
    "processes on CPUs are not sharded": ({}, Method.FFT, Device.CPU, (1, 4), Engine.DDP, "small enough"),
    "DeepSpeed without a stage is stage 2": (
        {f"{P}.use_deepspeed": True}, Method.FFT, Device.CUDA, (1, 8), Engine.ZERO2, "no stage is given: 2"),
    "DeepSpeed counts although fsdp is false": (
        {f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3, f"{P}.fsdp": False}, Method.FFT, Device.CUDA, (1, 8),
        Engine.ZERO3, f"{P}.deepspeed_stage is 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_engine(case: str) -> None:
    changes, method, device, (nodes, each), engine, reason = CASES[case]
    layout = Layout(nodes, each, nodes * each, 1, 1, ())
    found, why = resolve_engine(read(resource(changes)).engine, method, layout, device)
    assert (found, reason in why) == (engine, True), why
