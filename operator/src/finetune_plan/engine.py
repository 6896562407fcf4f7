"""Who shards what, and in which number format."""

from __future__ import annotations

from finetune_api.runtime.choices import Device, Engine, Method, Precision

from .job_settings import EngineSettings
from .layout import Layout

_ZERO = {0: Engine.DDP, 1: Engine.ZERO1, 2: Engine.ZERO2, 3: Engine.ZERO3}


def resolve_engine(given: EngineSettings, method: Method, layout: Layout, device: Device) -> tuple[Engine, str]:
    """The engine, and why."""
    if layout.data_parallel == 1:
        return Engine.SINGLE, "There is one replica of the model: nothing to shard or to average."
    if given.fsdp.value is True:
        return _sharded(given, layout)
    if given.use_deepspeed.value is True:
        stage = given.deepspeed_stage
        if not stage.key:
            return _ZERO[stage.value], f"{given.use_deepspeed.key} is true, and no stage is given: {stage.value}."
        return _ZERO[stage.value], f"{stage.key} is {stage.value}."
    if given.fsdp.value is False and method is Method.FFT and device is Device.CUDA:
        return Engine.DDP, f"{given.fsdp.key} is false: every rank holds the whole state."
    if method is Method.FFT and device is Device.CUDA:
        return Engine.FSDP2, "Full finetuning on several GPUs shards its state unless a key selects another engine."
    return Engine.DDP, "The trained state is small enough for one copy in every rank."


def _sharded(given: EngineSettings, layout: Layout) -> tuple[Engine, str]:
    """Of hybrid sharding, a layout with one node or with one rank a node leaves only a part."""
    strategy = given.fsdp_sharding_strategy
    name = strategy.value.lower()
    if name == "no_shard":
        return Engine.DDP, f"{strategy.key} is no_shard."
    if name != "hybrid_shard":
        return Engine.FSDP2, f"{given.fsdp.key} is true."
    if layout.nodes == 1:
        return Engine.FSDP2, f"{strategy.key} is hybrid_shard, and there is one node: nothing to replicate across."
    if layout.gpus_per_node == 1:
        return Engine.DDP, f"{strategy.key} is hybrid_shard, and nodes have one rank: nothing to shard inside."
    return Engine.HSDP, f"{strategy.key} is hybrid_shard."


def resolve_precision(given: EngineSettings, device: Device) -> Precision:
    """bf16 where a GPU computes and no key selects another format."""
    if given.fp16.value is True:
        return Precision.FP16
    if given.bf16.value is None:
        return Precision.BF16 if device is Device.CUDA else Precision.FP32
    return Precision.BF16 if given.bf16.value else Precision.FP32
