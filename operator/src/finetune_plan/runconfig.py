"""From the job to the trainer's run configuration: every default is decided here, once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from finetune_api.resource.aliases import (
    DATA,
    LENGTH,
    LORA_ALPHA,
    LORA_DROPOUT,
    LORA_R,
    LORA_TARGETS,
    MAX_STEPS,
    MODEL,
)
from finetune_api.runtime.choices import Method
from finetune_api.runtime.run_config import (
    DEFAULT_SEQUENCE_LENGTH,
    Batch,
    Checkpointing,
    Data,
    Lora,
    Mesh,
    Optimizer,
    RunConfig,
    Schedule,
    Validation,
)
from finetune_api.validation import uris
from finetune_api.validation.predicates import find

from .facts import get
from .mounts import place
from .resolve import Resolution

_H = "hyperparameters"
_V = "training.validation"

ALL_LINEAR = "all-linear"
LEARNING_RATES = {Method.FFT: 1e-5, Method.LORA: 2e-4, Method.QLORA: 2e-4}
"""Where the job names none. Full finetuning wants about a twentieth of what adapters want."""


def run_config(job: Resolution) -> RunConfig:
    """The document that the trainer gets."""
    spec, layout = job.spec, job.layout
    return RunConfig(
        name=job.name,
        model=place(get(spec, "", *MODEL), uris.MODEL).path,
        method=job.method,
        engine=job.engine,
        device=job.device,
        precision=job.precision,
        data=_data(spec),
        sequence_length=_sequence_length(spec),
        lora=resolve_lora(spec, job.method),
        mesh=Mesh(
            nodes=layout.nodes,
            processes_per_node=layout.gpus_per_node,
            data_parallel=layout.data_parallel,
            tensor_parallel=layout.tensor_parallel,
            pipeline_parallel=layout.pipeline_parallel,
        ),
        batch=Batch(per_device=job.batch.per_device, accumulation=job.batch.accumulation),
        optimizer=_optimizer(spec, job.method),
        schedule=_schedule(spec),
        validation=_validation(spec),
        checkpointing=Checkpointing(
            every_steps=get(spec, 0, "training.save_steps"), keep=get(spec, 2, "training.save_total_limit")
        ),
        activation_checkpointing=get(spec, False, f"{_H}.parallelism.activation_checkpointing"),
        log_every_steps=get(spec, 1, "training.logging_steps"),
        seed=get(spec, 42, "training.seed"),
        output=place(get(spec, default_output(job.name), "output.uri"), uris.OUTPUT).path,
    )


def digest(config_json: str) -> str:
    """What a run configuration is known by."""
    return "sha256:" + hashlib.sha256(config_json.encode()).hexdigest()


def default_output(name: str) -> str:
    """Where the result goes if the job does not say: a folder that ends with the pods."""
    return f"/mnt/output/{name}"


def _data(spec: Mapping[str, Any]) -> Data:
    validation = find(spec, "data.validation_path")
    return Data(
        train=place(get(spec, "", *DATA), uris.ROWS).path,
        validation=place(validation, uris.ROWS).path if validation and _validation(spec) else None,
        on_bad_row=get(spec, "refuse", "data.on_bad_row"),
        max_bad_share=get(spec, 0.01, "data.max_bad_share"),
        examples=find(spec, "data.examples"),
        shuffle=get(spec, True, "data.shuffle"),
    )


def _sequence_length(spec: Mapping[str, Any]) -> int | None:
    asked, limit = get(spec, None, *LENGTH), find(spec, "model_config.max_model_len")
    if limit is None:
        return None if asked is None else int(asked)
    return min(int(limit), DEFAULT_SEQUENCE_LENGTH if asked is None else int(asked))


def _optimizer(spec: Mapping[str, Any], method: Method) -> Optimizer:
    return Optimizer(
        name="adamw",
        learning_rate=get(spec, LEARNING_RATES[method], f"{_H}.learning_rate"),
        weight_decay=get(spec, 0.0, f"{_H}.weight_decay"),
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        max_grad_norm=get(spec, 1.0, f"{_H}.max_grad_norm"),
    )


def _schedule(spec: Mapping[str, Any]) -> Schedule:
    return Schedule(
        name=get(spec, "cosine", f"{_H}.lr_scheduler_type"),
        warmup_ratio=get(spec, 0.03, f"{_H}.warmup_ratio"),
        epochs=get(spec, 1, f"{_H}.n_epochs"),
        max_steps=get(spec, None, *MAX_STEPS),
    )


def _validation(spec: Mapping[str, Any]) -> Validation | None:
    strategy = get(spec, "steps", f"{_V}.evaluation_strategy")
    if not get(spec, True, f"{_V}.enabled") or strategy == "no" or not find(spec, "data.validation_path"):
        return None
    return Validation(
        every_steps=get(spec, 0, f"{_V}.eval_steps") if strategy == "steps" else 0,
        keep_best=get(spec, True, f"{_V}.save_best_model_at_end"),
        metric="val.loss",
        greater_is_better=False,
    )


def resolve_lora(spec: Mapping[str, Any], method: Method) -> Lora | None:
    """The adapters, from whichever of the four spellings was used."""
    if method is Method.FFT:
        return None
    rank = get(spec, 16, *LORA_R)
    return Lora(
        rank=rank,
        alpha=get(spec, 2 * rank, *LORA_ALPHA),
        dropout=get(spec, 0.0, *LORA_DROPOUT),
        target_modules=tuple(get(spec, [ALL_LINEAR], *LORA_TARGETS)),
    )
