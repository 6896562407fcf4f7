"""Every honoured key has a reader: another legal value has another effect, or only one value is legal.

Three tables name each honoured key of the resource once, so a new key without a reader cannot land. What a job has as
effects contains no sentences: a key that only changes a message is not honoured.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from builders import Json, put, resource
from finetune_api.resource import aliases
from finetune_api.resource.key_table import Fate
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.model import Observed, ObservedPod, ObservedRun, Plan
from finetune_plan.resolve import validate
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload

SETTINGS = PlanSettings(service_accounts=("reader", "writer"))
P, H, V = "hyperparameters.parallelism", "hyperparameters", "training.validation"
NOTHING: Json = {}
NO_COUNT: Json = {"compute.gpu_count": None}
TCP: Json = {"network.profile": "tcp"}
EVAL: Json = {"data.validation_path": "pvc://rows/eval.jsonl"}
LORA: Json = {"training.mode": "lora"}
QLORA: Json = {"training.use_qlora": True}
FSDP: Json = {**LORA, f"{P}.fsdp": True}
KEY: Json = {"pods.tolerations": [{"key": "a"}]}
EVERY: Json = {"pods.tolerations": [{"operator": "Exists"}]}
NO_EXECUTE: Json = {"pods.tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute"}]}
URI = "pvc://rows/{}.jsonl".format


class Two(NamedTuple):
    """Two legal values with different effects; None leaves the key out."""

    besides: Json
    """What the job says in both cases."""
    one: Any
    other: Any


class Only(NamedTuple):
    """Legal values with the same effect as none, and a value that is refused."""

    besides: Json
    legal: tuple[Any, ...]
    refused: Any


class Checked(NamedTuple):
    """A value that agrees with the rest of the job and has no effect, and one that contradicts it."""

    besides: Json
    agrees: Any
    contradicts: Any


TWO: dict[str, Two] = {
    "algorithm.variety": Two(NOTHING, "fft", "lora"),
    "job.model": Two({"job.model": None}, "Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
    "job.data": Two({"job.data": None}, URI("a"), URI("b")),
    "policy.trainer_mode": Two(NOTHING, "full", "lora"),
    "compute.gpu_type": Two(NOTHING, "H100", "A100"),
    "compute.gpu_count": Two(NO_COUNT, 4, 8),
    "compute.nodes": Two(TCP, 1, 2),
    "compute.gpus_per_node": Two(TCP, 4, 8),
    "data.validation_path": Two(NOTHING, URI("a"), URI("b")),
    "data.on_bad_row": Two(NOTHING, "refuse", "skip"),
    "data.max_bad_share": Two(NOTHING, 0.1, 0.5),
    "data.examples": Two(NOTHING, 10, 20),
    "data.shuffle": Two(NOTHING, True, False),
    "training.mode": Two(NOTHING, "fft", "lora"),
    "training.use_qlora": Two(NOTHING, False, True),
    "training.quantization.format": Two(QLORA, "nf4", "int8"),
    "training.quantization.double_quant": Two(QLORA, True, False),
    f"{V}.enabled": Two(EVAL, True, False),
    f"{V}.evaluation_strategy": Two(EVAL, "steps", "no"),
    f"{V}.eval_steps": Two(EVAL, 7, 8),
    f"{V}.save_best_model_at_end": Two(EVAL, True, False),
    f"{H}.lora.r": Two(LORA, 3, 4),
    f"{H}.lora.alpha": Two(LORA, 5, 6.5),
    f"{H}.lora.dropout": Two(LORA, 0.1, 0.2),
    f"{H}.lora.target_modules": Two(LORA, ["q_proj"], ["q_proj", "k_proj"]),
    "training.lora.layers_to_transform": Two(LORA, [0, 1], [2]),
    "training.lora.rank_pattern": Two(LORA, {"q_proj": 4}, {"q_proj": 8}),
    "training.lora.alpha_pattern": Two(LORA, {"q_proj": 4}, {"q_proj": 8}),
    "training.lora.use_rslora": Two(LORA, False, True),
    "training.lora.use_dora": Two(LORA, False, True),
    "training.lora.bias": Two(LORA, "all", "lora_only"),
    "training.lora.modules_to_save": Two(LORA, ["lm_head"], ["norm"]),
    "data.added_tokens": Two(NOTHING, ["<a>"], ["<b>"]),
    "training.lora.trainable_tokens": Two(LORA, ["<|im_start|>"], ["<|im_end|>"]),
    "training.lora.target_parameters": Two(LORA, ["experts.down_proj"], ["experts.gate_up_proj"]),
    "training.lora.from": Two(LORA, "pvc://models/one", "pvc://models/other"),
    "training.lora.init_lora_weights": Two(LORA, "default", "gaussian"),
    "training.seed": Two(NOTHING, 7, 8),
    "training.deterministic": Two(NOTHING, True, False),
    "training.save_steps": Two(NOTHING, 7, 8),
    "training.save_total_limit": Two(NOTHING, 7, 8),
    "training.logging_steps": Two(NOTHING, 7, 8),
    f"{H}.n_epochs": Two(NOTHING, 3, 4),
    f"{H}.total_steps": Two(NOTHING, 3, 4),
    f"{H}.per_device_batch": Two(NOTHING, 3, 4),
    f"{H}.gradient_accumulation_steps": Two(NOTHING, 3, 4),
    f"{H}.global_batch": Two(NOTHING, 32, 64),
    f"{H}.sequence_length": Two(NOTHING, 128, 256),
    f"{H}.learning_rate": Two(NOTHING, 3e-5, 4e-5),
    f"{H}.warmup_ratio": Two(NOTHING, 0.1, 0.5),
    f"{H}.lr_scheduler_type": Two(NOTHING, "linear", "constant"),
    f"{H}.weight_decay": Two(NOTHING, 0.1, 0.2),
    f"{H}.max_grad_norm": Two(NOTHING, 0.3, 0),
    f"{H}.optim": Two(NOTHING, "adamw", "adamw_8bit"),
    f"{H}.train_kind": Two(NOTHING, "fft", "peft"),
    f"{P}.use_deepspeed": Two(NOTHING, True, False),
    f"{P}.deepspeed_stage": Two({f"{P}.use_deepspeed": True}, 1, 3),
    f"{P}.deepspeed_config": Two(NOTHING, {"zero_optimization": {"stage": 1}}, {"zero_optimization": {"stage": 3}}),
    f"{P}.offload_optimizer_device": Two({f"{P}.use_deepspeed": True}, "none", "cpu"),
    f"{P}.offload_param_device": Two({f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3}, "none", "cpu"),
    f"{P}.fsdp": Two(LORA, True, False),
    f"{P}.fsdp_sharding_strategy": Two(FSDP, "full_shard", "no_shard"),
    f"{P}.bf16": Two(NOTHING, True, False),
    f"{P}.fp16": Two(NOTHING, True, False),
    f"{P}.rounding": Two(NOTHING, "stochastic", "nearest"),
    f"{P}.weights": Two(NOTHING, "fp32", "bf16"),
    f"{P}.tf32": Two(NOTHING, True, False),
    f"{P}.activation_checkpointing": Two(NOTHING, True, False),
    "model_config.max_model_len": Two(NOTHING, 128, 256),
    "suspend": Two(NOTHING, False, True),
    "cancel": Two(NOTHING, False, True),
    "output.uri": Two(NOTHING, "pvc://models/here", "pvc://models/there"),
    "output.merge": Two(LORA, False, True),
    "pods.image": Two(NOTHING, "registry.example/trainer:1", "registry.example/trainer:2"),
    "pods.imagePullPolicy": Two(NOTHING, "Always", "Never"),
    "pods.imagePullSecrets": Two(NOTHING, ["a"], ["b"]),
    "pods.cpu": Two(NOTHING, "3", "4"),
    "pods.memory": Two(NOTHING, "32Gi", "64Gi"),
    "pods.sharedMemory": Two(NOTHING, "1Gi", "2Gi"),
    "pods.nodeSelector": Two(NOTHING, {"a": "b"}, {"a": "c"}),
    "pods.tolerations[].key": Two(EVERY, "a", "b"),
    "pods.tolerations[].operator": Two(KEY, "Equal", "Exists"),
    "pods.tolerations[].value": Two(KEY, "b", "c"),
    "pods.tolerations[].effect": Two(KEY, "NoSchedule", "NoExecute"),
    "pods.tolerations[].tolerationSeconds": Two(NO_EXECUTE, 5, 6),
    "pods.labels": Two(NOTHING, {"a": "b"}, {"a": "c"}),
    "pods.annotations": Two(NOTHING, {"a": "b"}, {"a": "c"}),
    "pods.env[].name": Two({"pods.env": [{"value": "b"}]}, "A", "B"),
    "pods.env[].value": Two({"pods.env": [{"name": "A"}]}, "b", "c"),
    "pods.priorityClassName": Two(NOTHING, "batch", "urgent"),
    "pods.serviceAccountName": Two(NOTHING, "reader", "writer"),
    "network.profile": Two({"compute.nodes": 2}, "coreweave-ib", "tcp"),
    "storage.cacheClaim": Two(NOTHING, "cache", "models"),
    "queue.name": Two(NOTHING, "research", "production"),
    "queue.priorityClass": Two({"queue.name": "research"}, "low", "high"),
    "lifecycle.maxRestarts": Two(NOTHING, 0, 1),
    "lifecycle.activeDeadlineSeconds": Two(NOTHING, 3600, 31536000),
    "lifecycle.terminationGracePeriodSeconds": Two(NOTHING, 30, 999),
    "lifecycle.ttlSecondsAfterFinished": Two(NOTHING, 3600, 31536000),
    "credentials.huggingFace.secretName": Two(NOTHING, "hub", "mine"),
    "credentials.huggingFace.key": Two({"credentials.huggingFace": {"secretName": "hub"}}, "one", "other"),
}

ONLY: dict[str, Only] = {
    "algorithm.type": Only(NOTHING, ("offline",), "online"),
    "algorithm.method": Only(NOTHING, ("sft", "supervised_finetune"), "dpo"),
    "data.format": Only(NOTHING, ("messages",), "parquet"),
    f"{V}.metric_for_best_model": Only(EVAL, ("val.loss", "eval_loss"), "bleu"),
    f"{V}.greater_is_better": Only(EVAL, (False,), True),
    f"{P}.fsdp_auto_wrap_policy": Only(FSDP, ("transformer_block", "transformer_based_wrap"), "size_based_wrap"),
    f"{P}.tensor_parallel_size": Only(LORA, (1,), 2),
    f"{P}.pipeline_parallel_size": Only(LORA, (1,), 2),
}

CHECKED: dict[str, Checked] = {
    "data.topology.data_parallel": Checked(NOTHING, 8, 4),
    "output.ephemeral": Checked(NOTHING, False, True),
}


def spellings(key: str) -> tuple[str, ...]:
    """The key and its aliases, the preferred one first."""
    return next((group for group in aliases.GROUPS if key in group), (key,))


def spelt(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Each key of a table under each of its spellings, after the key itself."""
    return [(key, spelling) for key in table for spelling in spellings(key)]


def test_the_tables_name_every_honoured_key_once_and_no_other() -> None:
    named = Counter(spelling for table in (TWO, ONLY, CHECKED) for _, spelling in spelt(table))
    assert named == Counter(leaves())


def leaves() -> set[str]:
    """Honoured keys that hold no other keys."""
    every = {k.path.removeprefix("spec."): k for k in keys(Spec)}
    parents = {p.rpartition(".")[0].removesuffix("[]") for p in every}
    return {p for p, k in every.items() if k.fate is Fate.HONOURED and p not in parents}


@pytest.mark.parametrize(("key", "spelling"), spelt(TWO), ids=lambda key: key)
def test_another_legal_value_has_another_effect(key: str, spelling: str) -> None:
    case = TWO[key]
    assert effects(job(case.besides, spelling, case.one)) != effects(job(case.besides, spelling, case.other))


@pytest.mark.parametrize(("key", "spelling"), spelt(ONLY), ids=lambda key: key)
def test_the_only_legal_value_has_one_effect_and_another_value_is_refused(key: str, spelling: str) -> None:
    case = ONLY[key]
    first, *others = (effects(job(case.besides, spelling, value)) for value in case.legal)
    assert all(each == first for each in others)
    assert refused_at(job(case.besides, spelling, case.refused)) == [f"spec.{spelling}"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("adamw", None), ("adamw", "adamw_torch"), ("adamw", "adamw_torch_fused"), ("adamw_8bit", "adamw_bnb_8bit")],
)
def test_names_of_the_same_optimizer_have_the_same_effect(one: str, other: str | None) -> None:
    assert effects(job(NOTHING, f"{H}.optim", one)) == effects(job(NOTHING, f"{H}.optim", other))


@pytest.mark.parametrize(
    "name",
    ["paged_adamw", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_8bit", "adamw_8bit\n", "sgd", "lion_8bit"],
)
def test_another_optimizer_is_refused_and_the_remedy_names_what_saves_memory(name: str) -> None:
    [problem] = validate(job(NOTHING, f"{H}.optim", name), SETTINGS).problems
    assert problem.path == f"spec.{H}.optim"
    assert "adamw_8bit" in problem.remedy
    assert f"{P}.fsdp" in problem.remedy


@pytest.mark.parametrize(("key", "spelling"), spelt(CHECKED), ids=lambda key: key)
def test_a_value_that_agrees_has_no_effect_and_one_that_contradicts_is_refused(key: str, spelling: str) -> None:
    case = CHECKED[key]
    assert effects(job(case.besides, spelling, case.agrees)) == effects(job(case.besides, spelling, None))
    assert refused_at(job(case.besides, spelling, case.contradicts)) == [f"spec.{key}"]


@pytest.mark.parametrize(
    ("key", "spelling"), [(key, s) for table in (TWO, ONLY, CHECKED) for key, s in spelt(table) if s != key],
    ids=lambda key: key,
)  # fmt: skip
def test_an_alias_has_the_effect_of_the_preferred_key(key: str, spelling: str) -> None:
    for besides, value in legal(key):
        assert effects(job(besides, spelling, value)) == effects(job(besides, key, value))


def legal(key: str) -> Iterator[tuple[Json, Any]]:
    """The legal values of a key, with what the job says besides."""
    if key in TWO:
        yield from ((TWO[key].besides, value) for value in (TWO[key].one, TWO[key].other))
    elif key in ONLY:
        yield from ((ONLY[key].besides, value) for value in ONLY[key].legal)
    else:
        yield CHECKED[key].besides, CHECKED[key].agrees


def job(besides: Json, key: str, value: Any) -> Json:
    """A job of eight GPUs with a value at `key`; `list[].key` is the first entry of a list."""
    data = resource(besides)
    head, _, tail = key.partition("[].")
    if not tail:
        put(data["spec"], key, value)
        return data
    [first] = entries = copy.deepcopy(besides[head])
    first[tail] = value
    put(data["spec"], head, entries)
    return data


def refused_at(data: Json) -> list[str]:
    return [problem.path for problem in validate(data, SETTINGS).problems]


def effects(data: Json) -> list[Any]:
    """What follows from a valid job, without sentences: run configuration, manifest, and its life afterwards."""
    verdict = validate(data, SETTINGS)
    assert verdict.problems == ()
    assert verdict.resolution is not None
    manifest = BACKEND.render(workload(verdict.resolution, SETTINGS))
    return [verdict.resolution.run_config, manifest, *(decisions(seen) for seen in lives(data))]


def decisions(seen: Observed) -> tuple[Any, ...]:
    """What is done about a job, and the state that its status reports."""
    found: Plan = plan(seen, SETTINGS, datetime(2026, 1, 1, tzinfo=UTC), BACKEND)
    conditions = tuple((each.type, each.status, each.reason) for each in found.status.conditions or ())
    return found.actions, found.status.phase, conditions, found.requeue_after


def lives(data: Json) -> list[Observed]:
    """Situations in which the keys of a job's life matter: new, crashed, long running, long finished."""
    data = {**data, "metadata": {**data["metadata"], "namespace": "team"}}
    run = (ObservedRun("sample-1", 1),)
    started = {"run": 1, "startTime": "2025-12-31T00:00:00Z", "phase": "Training"}
    ended = {**started, "completionTime": "2025-12-31T01:00:00Z", "phase": "Succeeded"}
    running = ObservedPod("sample-1-0", "u", 1, 0, "Running", bound_since="2025-12-31T00:00:00Z")
    crashed = ObservedPod("sample-1-0", "u", 1, 0, "Failed", exit_code=1)
    return [
        Observed(data),
        Observed({**data, "status": started}, run, (running,)),
        Observed({**data, "status": started}, run, (crashed,)),
        Observed({**data, "status": ended}, run),
    ]
