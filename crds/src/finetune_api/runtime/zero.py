"""What this version does not have with DeepSpeed ZeRO, by the keys of a job. Asked by the plan and by the trainer.

Methods and precisions are in capabilities.py, with those of the other engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .choices import Engine, LoraBias, OptimizerName, Precision, Rounding, WeightFormat

if TYPE_CHECKING:
    from .run_config import Lora, RunConfig

STAGES = {Engine.ZERO1: 1, Engine.ZERO2: 2, Engine.ZERO3: 3}
INSTEAD = (
    "in hyperparameters.parallelism leave deepspeed_config out and set use_deepspeed to false and fsdp to true, which"
    " has this"
)

STAGE = "hyperparameters.parallelism.deepspeed_stage"
SWITCH_ON = f"set hyperparameters.parallelism.use_deepspeed to true and {STAGE} to 1, 2 or 3"
TO_STAGE_3 = f"set {STAGE} to 3"
OFFLOAD_OPTIMIZER = "hyperparameters.parallelism.offload_optimizer_device"
OFFLOAD_PARAMETERS = "hyperparameters.parallelism.offload_param_device"


class Absent(NamedTuple):
    key: str
    value: object
    reason: str
    where: str = "with DeepSpeed ZeRO"
    instead: str = INSTEAD


def absent(config: RunConfig) -> Iterator[Absent]:
    """What a run asks for in vain, of ZeRO or because of it."""
    yield from _of_offload(config)
    if config.engine not in STAGES:
        return
    if config.optimizer.name is not OptimizerName.ADAMW:
        yield Absent("hyperparameters.optim", config.optimizer.name, "its optimizer is torch's AdamW")
    if config.precision is Precision.BF16 and config.rounding is Rounding.STOCHASTIC:
        yield Absent("hyperparameters.parallelism.rounding", config.rounding, "it rounds to the nearest")
    if config.weights is WeightFormat.BF16:
        yield Absent("hyperparameters.parallelism.weights", config.weights, "it keeps weights in fp32, too")
    if config.lora is not None:
        for key, value in _of_lora(config.lora):
            yield Absent(f"training.lora.{key}", value, "its adapters are plain LoRA")


def _of_offload(config: RunConfig) -> Iterator[Absent]:
    """Other engines keep everything on the GPU."""
    offload, stage = config.offload, STAGES.get(config.engine)
    if offload is None:
        return
    if stage is None:
        for key in (OFFLOAD_OPTIMIZER,) * offload.optimizer + (OFFLOAD_PARAMETERS,) * offload.parameters:
            reason = f"the engine of this job is {config.engine}"
            yield Absent(key, "cpu", reason, "without DeepSpeed ZeRO", SWITCH_ON)
    elif offload.parameters and stage < 3:
        reason = "only stage 3 gathers a weight where its layer computes"
        yield Absent(OFFLOAD_PARAMETERS, "cpu", reason, "below stage 3 of DeepSpeed ZeRO", TO_STAGE_3)


def _of_lora(lora: Lora) -> Iterator[tuple[str, object]]:
    """Adapters that use weights outside of their layer's forward pass, or that add to the state."""
    if lora.init.changes_base:
        yield "init_lora_weights", lora.init
    if lora.bias is not LoraBias.NONE:
        yield "bias", lora.bias
    if lora.dora:
        yield "use_dora", "true"
    for key in ("modules_to_save", "trainable_tokens", "target_parameters"):
        if getattr(lora, key):
            yield key, ", ".join(getattr(lora, key))
