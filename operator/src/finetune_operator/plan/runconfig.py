"""From the job to the trainer's run configuration: every default is decided here, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_api.logic import find
from finetune_api.rules import DATA, LENGTH, MAX_STEPS, MODEL
from finetune_api.run import (
    DEFAULT_SEQUENCE_LENGTH,
    Batch,
    Checkpointing,
    Data,
    Device,
    Engine,
    Lora,
    Mesh,
    Method,
    Optimizer,
    Precision,
    RunConfig,
    Schedule,
    Validation,
)  # fmt: skip

from .facts import Note, get
from .places import place

_H = "hyperparameters"
_V = "training.validation"

LEARNING_RATES = {Method.FFT: 1e-5, Method.LORA: 2e-4, Method.QLORA: 2e-4}
"""Where the job names none. Full finetuning wants about a twentieth of what adapters want."""


def run_config(
    name: str, spec: Mapping[str, Any], chosen: tuple[Method, Lora | None, Engine, Device, Precision], mesh: Mesh,
    batch: Batch,
) -> RunConfig:  # fmt: skip
    """The document that the trainer gets."""
    method, lora, engine, device, precision = chosen
    return RunConfig(
        name=name,
        model=place(get(spec, "", *MODEL), model=True).path,
        method=method,
        engine=engine,
        device=device,
        precision=precision,
        data=_data(spec),
        sequence_length=_sequence_length(spec),
        lora=lora,
        mesh=mesh,
        batch=batch,
        optimizer=_optimizer(spec, method),
        schedule=_schedule(spec),
        validation=_validation(spec),
        checkpointing=Checkpointing(
            every_steps=get(spec, 0, "training.save_steps"), keep=get(spec, 2, "training.save_total_limit")
        ),
        activation_checkpointing=get(spec, False, f"{_H}.parallelism.activation_checkpointing"),
        log_every_steps=get(spec, 1, "training.logging_steps"),
        seed=get(spec, 42, "training.seed"),
        output=place(get(spec, default_output(name), "output.uri")).path,
    )


def default_output(name: str) -> str:
    """Where the result goes if the job does not say: a folder that ends with the pods."""
    return f"/mnt/output/{name}"


def validation_note(spec: Mapping[str, Any]) -> Note | None:
    """Why a job that wants validation gets none, if so."""
    wanted = get(spec, True, f"{_V}.enabled") and get(spec, "steps", f"{_V}.evaluation_strategy") != "no"
    if not wanted or find(spec, "data.validation_path"):
        return None
    return Note(
        "ValidationSkipped",
        "data.validation_path is not given, so nothing is evaluated and the last checkpoint is the result. "
        "Rows are never split off silently; set training.validation.enabled to false to silence this.",
    )


def _data(spec: Mapping[str, Any]) -> Data:
    validation = find(spec, "data.validation_path")
    return Data(
        train=place(get(spec, "", *DATA)).path,
        validation=place(validation).path if validation and _validation(spec) else None,
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
