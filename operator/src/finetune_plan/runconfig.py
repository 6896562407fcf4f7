"""From the job to the trainer's run configuration: every default is decided here, once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from finetune_api.resource import defaults
from finetune_api.runtime.choices import (
    BaseFormat,
    Engine,
    LoraBias,
    LoraInit,
    Method,
    OptimizerName,
    Precision,
    Recompute,
    Rounding,
)
from finetune_api.runtime.run_config import (
    BaseQuantisation,
    Batch,
    Checkpointing,
    DataConfig,
    Lora,
    Mesh,
    Offload,
    Optimizer,
    RunConfig,
    Schedule,
    Validation,
    ZeroSizes,
)
from finetune_api.runtime.zero import STAGES
from finetune_api.validation import uris

from . import deepspeed_dictionary
from .job_settings import (
    DataSettings,
    EngineSettings,
    JobSettings,
    LoraSettings,
    OptimizerSettings,
    QuantizationSettings,
)
from .mounts import mount
from .resolve import Resolution

LEARNING_RATES = {
    Method.FFT: defaults.LEARNING_RATE_FFT,
    Method.LORA: defaults.LEARNING_RATE_ADAPTERS,
    Method.QLORA: defaults.LEARNING_RATE_ADAPTERS,
}


def run_config(resolved: Resolution) -> RunConfig:
    """The document that the trainer gets."""
    job, layout = resolved.job, resolved.layout
    return RunConfig(
        name=job.name,
        model=mount(job.model.value, uris.MODEL).path,
        method=resolved.method,
        engine=resolved.engine,
        device=resolved.device,
        precision=resolved.precision,
        rounding=_rounding(job.engine, resolved.precision),
        weights=job.engine.weights.value,
        tf32=job.engine.tf32.value,
        deterministic=job.training.deterministic.value,
        data=_data(job),
        sequence_length=_sequence_length(job.data),
        added_tokens=tuple(dict.fromkeys(job.data.added_tokens.value)),
        lora=resolve_lora(job.lora, resolved.method),
        quantisation=_quantisation(job.quantization, resolved.method),
        mesh=Mesh(
            nodes=layout.nodes,
            processes_per_node=layout.gpus_per_node,
            data_parallel=layout.data_parallel,
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
        ),
        zero=_zero(job.engine, resolved.engine),
        offload=_offload(job.engine),
        batch=Batch(per_device=resolved.batch.per_device, accumulation=resolved.batch.accumulation),
        optimizer=_optimizer(job.optimizer, resolved.method),
        schedule=_schedule(job.optimizer),
        validation=_validation(job),
        checkpointing=Checkpointing(
            every_steps=job.training.save_steps.value, keep=job.training.save_total_limit.value
        ),
        **_recompute(job.engine.activation_checkpointing.value),
        log_every_steps=job.training.logging_steps.value,
        seed=job.training.seed.value,
        output=mount(output_uri(job), uris.OUTPUT).path,
        merge=job.merge.value,
    )


def _rounding(given: EngineSettings, precision: Precision) -> Rounding:
    """By default that of DeepSpeed ZeRO, the nearest, where a job names it, on one GPU too.

    Rounding is in the identity of a run, and a run may continue on another number of GPUs.
    """
    names_zero = given.use_deepspeed.value is True and given.deepspeed_stage.value > 0
    if names_zero and precision is Precision.BF16 and not given.rounding.key:
        return Rounding.NEAREST
    return Rounding(given.rounding.value)


def _zero(given: EngineSettings, engine: Engine) -> ZeroSizes | None:
    found = deepspeed_dictionary.sizes(given.deepspeed_config.value or {}, STAGES.get(engine, 0))
    return ZeroSizes(**found) if found else None


def _offload(given: EngineSettings) -> Offload | None:
    optimizer, parameters = (each.value == "cpu" for each in given.offload)
    return Offload(optimizer=optimizer, parameters=parameters) if given.offloads else None


def _recompute(given: str | bool) -> dict[str, Any]:
    """In the key that version 0.1.0 has, where that can say it; for its trainer selective is full."""
    if isinstance(given, bool):
        given = Recompute.FULL if given else Recompute.NONE
    wanted = Recompute(given)
    known = wanted in (Recompute.FULL, Recompute.AUTO)
    return {
        "activation_checkpointing": wanted in (Recompute.FULL, Recompute.SELECTIVE),
        "recompute": None if known else wanted,
    }


def digest(config: RunConfig) -> str:
    """What a run configuration is known by: all but where, and in what portions, the same is computed."""
    known = config.model_copy(update={"recompute": None, "zero": None, "offload": None})
    return "sha256:" + hashlib.sha256(known.document().encode()).hexdigest()


def output_uri(job: JobSettings) -> str:
    """Where the result goes; if the job does not set it, a folder that ends with the pods."""
    return job.output.value or f"/mnt/output/{job.name}"


def _data(job: JobSettings) -> DataConfig:
    data, validation = job.data, job.data.validation.value
    return DataConfig(
        train=mount(data.train.value, uris.ROWS).path,
        validation=mount(validation, uris.ROWS).path if validation and job.validation.wanted else None,
        on_bad_row=data.on_bad_row.value,
        max_bad_share=data.max_bad_share.value,
        examples=data.examples.value,
        shuffle=data.shuffle.value,
    )


def _sequence_length(data: DataSettings) -> int | None:
    asked, limit = data.sequence_length.value, data.max_model_len.value
    if limit is None:
        return asked
    return min(limit, defaults.SEQUENCE_LENGTH if asked is None else asked)


_EIGHT_BITS = ("adamw_8bit", "adamw_bnb_8bit")
"""Names of AdamW with moments in eight bits."""


def _optimizer(given: OptimizerSettings, method: Method) -> Optimizer:
    rate = given.learning_rate.value
    return Optimizer(
        name=OptimizerName.ADAMW_8BIT if given.name.value in _EIGHT_BITS else OptimizerName.ADAMW,
        learning_rate=LEARNING_RATES[method] if rate is None else rate,
        weight_decay=given.weight_decay.value,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        max_grad_norm=given.max_grad_norm.value,
    )


def _schedule(given: OptimizerSettings) -> Schedule:
    return Schedule(
        name=given.scheduler.value,
        warmup_ratio=given.warmup_ratio.value,
        epochs=given.epochs.value,
        max_steps=given.max_steps.value,
    )


def _validation(job: JobSettings) -> Validation | None:
    given = job.validation
    if not given.wanted or not job.data.validation.value:
        return None
    return Validation(
        every_steps=given.eval_steps.value if given.strategy.value == "steps" else 0,
        keep_best=given.keep_best.value,
        metric="val.loss",
        greater_is_better=False,
    )


def resolve_lora(given: LoraSettings, method: Method) -> Lora | None:
    """The adapters, from whichever of the four spellings was used."""
    if method is Method.FFT:
        return None
    rank, alpha = given.rank.value, given.alpha.value
    if alpha is None:  # the same scale with rsLoRA, which divides by the root
        alpha = defaults.LORA_ALPHA_PER_RANK * (math.sqrt(rank) if given.rslora.value else rank)
    return Lora(
        rank=rank,
        alpha=alpha,
        dropout=given.dropout.value,
        target_modules=tuple(given.target_modules.value),
        layers=None if given.layers.value is None else tuple(given.layers.value),
        rank_pattern=_longest_first(given.rank_pattern.value),
        alpha_pattern=_longest_first(given.alpha_pattern.value),
        rslora=given.rslora.value,
        dora=given.dora.value,
        init=LoraInit(given.init.value),
        bias=LoraBias(given.bias.value),
        modules_to_save=tuple(sorted(set(given.modules_to_save.value))),
        trainable_tokens=tuple(sorted(set(given.trainable_tokens.value))),
        target_parameters=tuple(sorted(set(given.target_parameters.value))),
        source=mount(given.source.value, uris.ADAPTER).path if given.source.value else "",
    )


def _longest_first(patterns: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """In an order of our own: the API server sorts the keys of a map."""
    return tuple(sorted((patterns or {}).items(), key=lambda pair: (-len(pair[0]), pair[0])))


def _quantisation(given: QuantizationSettings, method: Method) -> BaseQuantisation | None:
    if method is not Method.QLORA:
        return None
    found = BaseFormat(given.format.value)
    return BaseQuantisation(format=found, double=given.double_quant.value and found is not BaseFormat.INT8)
