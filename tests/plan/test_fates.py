"""Every honoured key has a reader: another value of the key is another plan, or another verdict.

The table must name every honoured key of the resource, so a new key without a reader cannot land.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from builders import Json, put, resource
from finetune_api.resource.key_table import Fate
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.model import Observed, ObservedPod, ObservedRun
from finetune_plan.resolve import validate
from finetune_plan.runconfig import run_config
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload

SETTINGS = PlanSettings(service_accounts=("reader",))
P, H, V = "hyperparameters.parallelism", "hyperparameters", "training.validation"
EVAL: Json = {"data.validation_path": "pvc://rows/eval.jsonl"}
LORA: Json = {"training.mode": "lora"}
FSDP: Json = {f"{P}.fsdp": True}
TOLERATION: Json = {"pods.tolerations": [{"key": "a", "operator": "Equal", "value": "b"}]}

# key -> (what the job says besides, the value given); the job without the key is what it is compared with
READ: dict[str, tuple[Json, Any]] = {
    "algorithm.type": ({}, "online"),
    "algorithm.method": ({}, "policy_gradient"),
    "algorithm.variety": ({}, "lora"),
    "job.model": ({"policy.model_name": None}, None),
    "job.data": ({}, None),
    "job.data_path": ({"job.data": None}, "pvc://rows/other.jsonl"),
    "policy.model_name": ({"job.model": None}, "Qwen/Qwen3-8B"),
    "policy.source": ({"job.model": None}, "Qwen/Qwen3-8B"),
    "policy.trainer_mode": ({}, "lora"),
    "compute.gpu_type": ({}, "A100"),
    "compute.gpu_count": ({}, 4),
    "compute.nodes": ({}, 2),
    "compute.gpus_per_node": ({}, 4),
    "compute.topology.gpus_for_training": ({}, 4),
    "compute.topology.tensor_parallel": ({}, 2),
    "data.topology.gpus_per_node": ({}, 4),
    "data.topology.total_gpus": ({}, 4),
    "data.topology.nodes": ({}, 2),
    "data.topology.tensor_parallel": ({}, 2),
    "data.topology.data_parallel": ({}, 4),
    "data.validation_path": ({}, "pvc://rows/eval.jsonl"),
    "data.format": ({}, "parquet"),
    "data.on_bad_row": ({}, "skip"),
    "data.max_bad_share": ({}, 0.5),
    "data.examples": ({}, 10),
    "data.shuffle": ({}, False),
    "training.mode": ({}, "lora"),
    "training.use_qlora": ({}, True),
    f"{V}.enabled": (EVAL, False),
    f"{V}.evaluation_strategy": (EVAL, "no"),
    f"{V}.eval_steps": (EVAL, 7),
    f"{V}.save_best_model_at_end": (EVAL, False),
    f"{V}.metric_for_best_model": (EVAL, "bleu"),
    f"{V}.greater_is_better": (EVAL, True),
    **{f"{path}.{name}": (LORA, value) for path in ("training.lora", "lora", f"{H}.lora")
       for name, value in (("r", 3), ("alpha", 5.0), ("dropout", 0.2), ("target_modules", ["q_proj"]))},
    f"{H}.lora_rank": (LORA, 3),
    f"{H}.lora_alpha": (LORA, 5.0),
    f"{H}.lora_dropout": (LORA, 0.2),
    f"{H}.lora_target_modules": (LORA, ["q_proj"]),
    "training.seed": ({}, 7),
    "training.save_steps": ({}, 7),
    "training.save_total_limit": ({}, 7),
    "training.logging_steps": ({}, 7),
    f"{H}.n_epochs": ({}, 3),
    f"{H}.total_steps": ({}, 3),
    f"{H}.train_steps": ({}, 3),
    f"{H}.steps": ({}, 3),
    f"{H}.batch_size": ({}, 3),
    f"{H}.per_device_batch": ({}, 3),
    f"{H}.gradient_accumulation_steps": ({}, 3),
    f"{H}.global_batch": ({}, 64),
    f"{H}.sequence_length": ({}, 128),
    f"{H}.max_seq_length": ({}, 128),
    f"{H}.learning_rate": ({}, 3e-5),
    f"{H}.warmup_ratio": ({}, 0.5),
    f"{H}.lr_scheduler_type": ({}, "linear"),
    f"{H}.weight_decay": ({}, 0.1),
    f"{H}.max_grad_norm": ({}, 0.3),
    f"{H}.optim": ({}, "sgd"),
    f"{H}.train_kind": ({}, "peft"),
    f"{H}.world_size": ({}, 4),
    f"{P}.use_deepspeed": ({}, True),
    f"{P}.deepspeed_stage": ({f"{P}.use_deepspeed": True}, 3),
    f"{P}.fsdp": (LORA, True),
    f"{P}.fsdp_sharding_strategy": (FSDP, "no_shard"),
    f"{P}.fsdp_auto_wrap_policy": (FSDP, "size_based"),
    f"{P}.bf16": ({}, False),
    f"{P}.fp16": ({}, True),
    f"{P}.tensor_parallel_size": ({}, 2),
    f"{P}.pipeline_parallel_size": ({}, 2),
    f"{P}.activation_checkpointing": ({}, True),
    f"{P}.topology.gpus_per_node": ({}, 4),
    f"{P}.topology.total_gpus": ({}, 4),
    f"{P}.topology.nodes": ({}, 2),
    f"{P}.topology.tensor_parallel": ({}, 2),
    f"{P}.topology.data_parallel": ({}, 4),
    "model_config.max_model_len": ({}, 128),
    "suspend": ({}, True),
    "cancel": ({}, True),
    "output.uri": ({}, "pvc://models/elsewhere"),
    "output.ephemeral": ({"output.uri": None}, True),
    "pods.image": ({}, "registry.example/trainer:1"),
    "pods.imagePullPolicy": ({}, "Always"),
    "pods.imagePullSecrets": ({}, ["registry"]),
    "pods.cpu": ({}, "3"),
    "pods.memory": ({}, "32Gi"),
    "pods.sharedMemory": ({}, "1Gi"),
    "pods.nodeSelector": ({}, {"a": "b"}),
    "pods.tolerations[].key": ({}, [{"key": "a", "operator": "Exists"}]),
    "pods.tolerations[].operator": (TOLERATION, [{"key": "a", "operator": "Exists"}]),
    "pods.tolerations[].value": (TOLERATION, [{"key": "a", "operator": "Equal", "value": "c"}]),
    "pods.tolerations[].effect": (
        TOLERATION, [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute"}]),
    "pods.tolerations[].tolerationSeconds": (
        {"pods.tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute"}]},
        [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]),
    "pods.labels": ({}, {"a": "b"}),
    "pods.annotations": ({}, {"a": "b"}),
    "pods.env[].name": ({}, [{"name": "A", "value": "b"}]),
    "pods.env[].value": ({"pods.env": [{"name": "A", "value": "b"}]}, [{"name": "A", "value": "c"}]),
    "pods.priorityClassName": ({}, "batch"),
    "pods.serviceAccountName": ({}, "reader"),
    "network.profile": ({}, "tcp"),
    "storage.cacheClaim": ({}, "cache"),
    "queue.name": ({}, "research"),
    "queue.priorityClass": ({}, "low"),
    "lifecycle.maxRestarts": ({}, 0),
    "lifecycle.activeDeadlineSeconds": ({}, 1),
    "lifecycle.terminationGracePeriodSeconds": ({}, 999),
    "lifecycle.ttlSecondsAfterFinished": ({}, 1),
    "credentials.huggingFace.secretName": ({}, {"secretName": "hub"}),
    "credentials.huggingFace.key": (
        {"credentials.huggingFace": {"secretName": "hub"}}, {"secretName": "hub", "key": "other"}),
}  # fmt: skip

SIZES = {"compute.gpu_count", "compute.nodes", "compute.gpus_per_node", "compute.topology.gpus_for_training",
         "data.topology.gpus_per_node", "data.topology.total_gpus", "data.topology.nodes", f"{H}.world_size",
         f"{P}.topology.gpus_per_node", f"{P}.topology.total_gpus", f"{P}.topology.nodes"}  # fmt: skip
"""Keys that say how many GPUs there are: the job they are compared with says nothing of it."""

CONTAINERS = ("pods.tolerations", "pods.env", "credentials.huggingFace")
"""Keys that hold the keys above: given as a whole."""


def leaves() -> set[str]:
    """Honoured keys that hold no other keys."""
    every = {k.path.removeprefix("spec."): k for k in keys(Spec)}
    parents = {p.rpartition(".")[0].removesuffix("[]") for p in every}
    return {p for p, k in every.items() if k.fate is Fate.HONOURED and p not in parents}


def test_the_table_names_every_honoured_key_and_no_other() -> None:
    assert set(READ) == leaves()


@pytest.mark.parametrize("key", sorted(READ))
def test_another_value_of_an_honoured_key_is_another_plan(key: str) -> None:
    besides, value = READ[key]
    sized = {} if key in SIZES else {"compute.gpu_count": 8}
    without = resource({"compute.gpu_count": None} | sized | besides)
    given = resource(spec=without["spec"])
    path = next((c for c in CONTAINERS if key.startswith(c)), key)
    put(given["spec"], path, value)
    assert outcome(without) != outcome(given)


def outcome(data: Json) -> list[Any]:
    """Everything that follows from a job: verdict, run configuration, manifest, and life afterwards."""
    verdict = validate(data, SETTINGS)
    found: list[Any] = [verdict.problems]
    if verdict.resolution:
        found += [run_config(verdict.resolution), verdict.resolution.layout.reasons]
    if verdict.resolution and verdict.valid:
        found.append(BACKEND.render(workload(verdict.resolution, SETTINGS)))
    return found + [plan(seen, SETTINGS, datetime(2026, 1, 1, tzinfo=UTC), BACKEND) for seen in lives(data)]


def lives(data: Json) -> list[Observed]:
    """Situations in which the keys of a job's life matter: new, crashed, long running, long finished."""
    data = {**data, "metadata": {**data["metadata"], "namespace": "team"}}
    run = (ObservedRun("sample-1", 1),)
    started = {"run": 1, "startTime": "2025-12-31T00:00:00Z", "phase": "Training"}
    ended = {**started, "completionTime": "2025-12-31T01:00:00Z", "phase": "Succeeded"}
    crashed = ObservedPod("sample-1-0", "u", 1, 0, "Failed", exit_code=1)
    return [
        Observed(data),
        Observed({**data, "status": started}, run, (ObservedPod("sample-1-0", "u", 1, 0, "Running"),)),
        Observed({**data, "status": started}, run, (crashed,)),
        Observed({**data, "status": ended}, run),
    ]
