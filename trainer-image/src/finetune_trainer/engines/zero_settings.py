"""The DeepSpeed dictionary of a run. Pure: the same run has the same dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_api.runtime.choices import (
    Device,
    Engine,
    LoraBias,
    LoraInit,
    OptimizerName,
    Precision,
    Rounding,
    WeightFormat,
)
from finetune_api.runtime.run_config import Lora, RunConfig

STAGES = {Engine.ZERO1: 1, Engine.ZERO2: 2, Engine.ZERO3: 3}
BUCKET = 50_000_000
"""Elements that are reduced or gathered at once: 200 MB in fp32, twice where communication overlaps."""
PERSISTENT = 10_000
"""Parameters up to this size, such as norms, stay whole on every rank in stage 3: gathers of them would cost more."""


def of(config: RunConfig) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Gradients are accumulated and reduced in fp32. A step of the optimizer comes when the engine asks for it, whatever
    the number of micro batches, so there is no number of them here.
    """
    bf16 = config.precision is Precision.BF16
    return {
        "train_micro_batch_size_per_gpu": config.batch.per_device,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": _zero(config),
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def refused(config: RunConfig) -> Iterator[str]:
    """What this engine does not do yet, by the keys of a job."""
    found = [
        ("hyperparameters.parallelism.fp16", "true", config.precision is Precision.FP16),
        (
            "hyperparameters.parallelism.rounding",
            config.rounding,
            config.precision is Precision.BF16 and config.rounding is Rounding.STOCHASTIC,
        ),
        ("hyperparameters.parallelism.weights", config.weights, config.weights is WeightFormat.BF16),
        ("hyperparameters.optim", config.optimizer.name, config.optimizer.name is not OptimizerName.ADAMW),
        *(_of_lora(config.lora) if config.lora is not None else ()),
    ]
    for key, value, given in found:
        if given:
            yield (
                f"{key}: {value} is not there with DeepSpeed ZeRO yet, which trains all weights or plain LoRA with "
                "AdamW, rounding to the nearest; in hyperparameters.parallelism set use_deepspeed to false and fsdp "
                "to true, which has this"
            )


def _of_lora(lora: Lora) -> Iterator[tuple[str, object, bool]]:
    """Adapters that use weights outside of their layer's forward pass, or that add to the state."""
    yield "training.lora.init_lora_weights", lora.init, lora.init not in (LoraInit.DEFAULT, LoraInit.GAUSSIAN)
    yield "training.lora.bias", lora.bias, lora.bias is not LoraBias.NONE
    yield "training.lora.use_dora", lora.dora, lora.dora
    for key in ("modules_to_save", "trainable_tokens", "target_parameters"):
        value = getattr(lora, key)
        yield f"training.lora.{key}", value, bool(value)


def _zero(config: RunConfig) -> dict[str, Any]:
    stage = STAGES[config.engine]
    common = {
        "stage": stage,
        "overlap_comm": config.device is Device.CUDA and stage > 1,  # DeepSpeed refuses it for stage 1 in our steps
        # The buffer of stage 2 has the format of the weights: it would round the fp32 gradients of adapters.
        "contiguous_gradients": stage != 2 or config.lora is None,
        "reduce_scatter": True,
        "reduce_bucket_size": BUCKET,
    }
    if stage < 3:
        return {**common, "allgather_bucket_size": BUCKET}
    return {
        **common, "stage3_prefetch_bucket_size": BUCKET, "stage3_param_persistence_threshold": PERSISTENT,
    }  # fmt: skip
