"""Who shards what, and in which number format."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.runtime.choices import BaseFormat, Device, Engine, Method, Precision

from .job_settings import EngineSettings
from .layout import Layout
from .model_size import parameters

_ZERO = {0: Engine.DDP, 1: Engine.ZERO1, 2: Engine.ZERO2, 3: Engine.ZERO3}
_BYTES: dict[Precision | BaseFormat, float] = {
    Precision.FP32: 4.0, Precision.BF16: 2.0, Precision.FP16: 2.0,
    BaseFormat.NF4: 0.6, BaseFormat.FP4: 0.6, BaseFormat.INT8: 1.1,
}  # fmt: skip
"""Of a parameter as the base is stored, with scales and with the layers that are not quantised."""
_SHARE = 1 / 3
"""Of a GPU's memory; the rest is for activations, and for the weights of one layer in 16 bits."""
_GIB = 2**30


@dataclass(frozen=True)
class Base:
    """What an adapter job trains adapters on."""

    model: str
    stored: Precision | BaseFormat
    memory_gib: int | None
    """Of one accelerator; None if its kind is not known."""
    whole_modules: str = ""
    """The key that trains some in full; empty if none is."""


def resolve_engine(
    given: EngineSettings, method: Method, layout: Layout, device: Device, base: Base
) -> tuple[Engine, str]:
    """The engine, and why."""
    if layout.data_parallel == 1 and not _offloads(given):
        return Engine.SINGLE, "There is one replica of the model: nothing to shard or to average."
    if given.fsdp.value is True:
        return _sharded(given, layout)
    if given.use_deepspeed.value is True:
        stage = given.deepspeed_stage
        if not stage.key:
            return _ZERO[stage.value], f"{given.use_deepspeed.key} is true, and no stage is given: {stage.value}."
        return _ZERO[stage.value], f"{stage.key} is {stage.value}."
    if device is Device.CPU:
        return Engine.DDP, "The trained state is small enough for one copy in every rank."
    if given.fsdp.value is False:
        return Engine.DDP, f"{given.fsdp.key} is false: every rank holds the whole state."
    if method is Method.FFT:
        return Engine.FSDP2, "Full finetuning on several GPUs shards its state unless a key selects another engine."
    return _of_adapters(base)


def _offloads(given: EngineSettings) -> bool:
    """Whether ZeRO is of use on one GPU, too."""
    return given.offloads and given.use_deepspeed.value is True and given.deepspeed_stage.value > 0


def _of_adapters(base: Base) -> tuple[Engine, str]:
    """Sharded, unless the name of the model says that a copy in every rank leaves room."""
    if base.whole_modules:
        return (
            Engine.FSDP2,
            f"{base.whole_modules} trains whole modules beside the adapters, so each GPU holds a part of them.",
        )
    size = parameters(base.model)
    if size is None or base.memory_gib is None:
        return (
            Engine.FSDP2,
            f"The name {base.model} does not say how large the base is, so each GPU holds a part of it.",
        )
    weights = size * _BYTES[base.stored] / _GIB
    what = f"By its name the base has {size / 1e9:.3g} B parameters: {weights:.3g} GiB"
    if weights > _SHARE * base.memory_gib:
        return (
            Engine.FSDP2,
            f"{what} are more than a third of the {base.memory_gib} GiB of a GPU, which holds a part.",
        )
    return Engine.DDP, f"{what} are at most a third of the {base.memory_gib} GiB of a GPU, and every rank holds them."


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
