"""The DeepSpeed dictionary of a run. Pure: the same run has the same dictionary."""

from __future__ import annotations

from typing import Any

from finetune_api.runtime.choices import Device, Precision
from finetune_api.runtime.run_config import Offload, RunConfig, ZeroSizes
from finetune_api.runtime.zero import STAGES

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


def _zero(config: RunConfig) -> dict[str, Any]:
    stage, sizes = STAGES[config.engine], config.zero or ZeroSizes()
    common = {
        "stage": stage,
        "overlap_comm": config.device is Device.CUDA and stage > 1,  # DeepSpeed refuses it for stage 1 in our steps
        # The buffer of stage 2 has the format of the weights: it would round the fp32 gradients of adapters.
        "contiguous_gradients": stage != 2 or config.lora is None,
        "reduce_scatter": True,
        "reduce_bucket_size": _given(sizes.reduce_bucket, BUCKET),
    }
    common |= _offloads(config.offload or Offload())
    if stage < 3:
        return {**common, "allgather_bucket_size": _given(sizes.allgather_bucket, BUCKET)}
    without_default = {
        "stage3_max_live_parameters": sizes.max_live_parameters,
        "stage3_max_reuse_distance": sizes.max_reuse_distance,
        "sub_group_size": sizes.sub_group,
    }
    return {
        **common,
        "stage3_prefetch_bucket_size": _given(sizes.prefetch_bucket, BUCKET),
        "stage3_param_persistence_threshold": _given(sizes.persistence_threshold, PERSISTENT),
        **{key: size for key, size in without_default.items() if size is not None},
    }


def _offloads(offload: Offload) -> dict[str, Any]:
    """The host's memory is pinned: else copies would wait for each other."""
    wanted = {"offload_optimizer": offload.optimizer, "offload_param": offload.parameters}
    return {key: {"device": "cpu", "pin_memory": True} for key, moved in wanted.items() if moved}


def _given(size: int | None, default: int) -> int:
    return default if size is None else size
