"""Rows per step from four keys, each alone and together."""

from __future__ import annotations

import pytest

from builders import Json, job, resource
from finetune_api.runtime.choices import Precision
from finetune_plan.batch import resolve_batch
from finetune_plan.job_settings import read
from finetune_plan.resolve import resolve
from finetune_plan.runconfig import run_config
from finetune_plan.settings import PlanSettings

H = "hyperparameters"
# keys -> (per device, accumulation) over 4 replicas, and the rows that global_batch is told about
CASES: dict[str, tuple[Json, tuple[int, int], str]] = {
    "nothing: one row, one pass": ({}, (1, 1), ""),
    "batch_size alone is the micro batch": ({f"{H}.batch_size": 8}, (8, 1), ""),
    "per_device_batch alone": ({f"{H}.per_device_batch": 8}, (8, 1), ""),
    "gradient_accumulation_steps alone": ({f"{H}.gradient_accumulation_steps": 16}, (1, 16), ""),
    "global_batch alone sets the accumulation": ({f"{H}.global_batch": 64}, (1, 16), ""),
    "global_batch with per_device_batch sets the accumulation": (
        {f"{H}.global_batch": 64, f"{H}.per_device_batch": 2}, (2, 8), ""),
    "global_batch with accumulation sets the micro batch": (
        {f"{H}.global_batch": 64, f"{H}.gradient_accumulation_steps": 4}, (4, 4), ""),
    "per_device_batch and accumulation": (
        {f"{H}.per_device_batch": 2, f"{H}.gradient_accumulation_steps": 64}, (2, 64), ""),
    "all three, agreeing": (
        {f"{H}.global_batch": 64, f"{H}.per_device_batch": 1, f"{H}.gradient_accumulation_steps": 16}, (1, 16), ""),
    "all three, as the 8-GPU seed contradicts itself": (
        {f"{H}.global_batch": 32, f"{H}.per_device_batch": 1, f"{H}.gradient_accumulation_steps": 16},
        (1, 16), "global_batch is 32, but 1 rows x 16 passes x 4 replicas make 64 rows per step; 64 is used"),
    "batch_size and per_device_batch may agree": (
        {f"{H}.batch_size": 2, f"{H}.per_device_batch": 2}, (2, 1), ""),
    "a global_batch that does not divide is rounded down and said": (
        {f"{H}.global_batch": 30, f"{H}.per_device_batch": 2}, (2, 3), "global_batch is 30, but"),
    "a global_batch smaller than one pass is said": (
        {f"{H}.global_batch": 2}, (1, 1), "global_batch is 2, but 1 rows x 1 passes x 4 replicas make 4 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_batch(case: str) -> None:
    changes, expected, note = CASES[case]
    batch, notes = resolve_batch(read(resource(changes)).batch, data_parallel=4)
    assert (batch.per_device, batch.accumulation) == expected
    assert [n.reason for n in notes] == (["GlobalBatchDiffers"] if note else [])
    assert note in "".join(n.sentence for n in notes)


ABSENT: dict[str, tuple[Json, float, int | None, Precision]] = {
    "full finetuning on GPUs": ({}, 1e-5, None, Precision.BF16),
    "adapters on GPUs": ({"training.mode": "lora"}, 2e-4, None, Precision.BF16),
    "adapters on CPUs": ({"training.mode": "lora", "compute.gpu_type": "cpu"}, 2e-4, None, Precision.FP32),
    "bf16 false is fp32": ({"hyperparameters.parallelism.bf16": False}, 1e-5, None, Precision.FP32),
    "fp16 where it is asked for": ({"hyperparameters.parallelism.fp16": True}, 1e-5, None, Precision.FP16),
    "bf16 on CPUs where it is asked for": (
        {"compute.gpu_type": "CPU", "hyperparameters.parallelism.bf16": True}, 1e-5, None, Precision.BF16),
    "max_model_len caps the default length": ({"model_config.max_model_len": 512}, 1e-5, 512, Precision.BF16),
    "max_model_len above the default leaves it": ({"model_config.max_model_len": 32768}, 1e-5, 2048, Precision.BF16),
}  # fmt: skip


@pytest.mark.parametrize("case", ABSENT)
def test_what_holds_when_learning_rate_length_or_precision_is_absent(case: str) -> None:
    changes, rate, length, precision = ABSENT[case]
    config = run_config(resolve(job(changes), PlanSettings()))
    assert config.optimizer.learning_rate == rate
    assert config.sequence_length == length
    assert config.precision is precision
