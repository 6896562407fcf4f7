"""Which keys decide the engine, the number format of the computation, and that of the weights."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest

from builders import Json, resource
from finetune_api.runtime.choices import BaseFormat, Device, Engine, Method, Precision, Rounding
from finetune_plan.engine import Base, resolve_engine
from finetune_plan.job_settings import read
from finetune_plan.layout import Layout
from finetune_plan.model_size import parameters
from finetune_plan.resolve import resolve, validate
from finetune_plan.runconfig import digest
from finetune_plan.settings import PlanSettings

P = "hyperparameters.parallelism"
HYBRID = {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "hybrid_shard"}
CASES: dict[str, tuple[Json, Method, Device, tuple[int, int], Engine, str]] = {
    "one replica needs none": ({f"{P}.fsdp": True}, Method.FFT, Device.CUDA, (1, 1), Engine.SINGLE, "one replica"),
    "full finetuning on several GPUs is sharded": ({}, Method.FFT, Device.CUDA, (1, 8), Engine.FSDP2, "shards its"),
    "unless fsdp is false": ({f"{P}.fsdp": False}, Method.FFT, Device.CUDA, (1, 8), Engine.DDP, f"{P}.fsdp is false"),
    "a small base of adapters is not sharded": (
        {"job.model": "Qwen/Qwen3-8B"}, Method.LORA, Device.CUDA, (1, 8), Engine.DDP,
        "the base has 8 B parameters: 14.9 GiB are at most a third of the 80 GiB of a GPU"),
    "unless fsdp is true": ({f"{P}.fsdp": True}, Method.LORA, Device.CUDA, (1, 8), Engine.FSDP2, f"{P}.fsdp is true"),
    "a large one is": (
        {"job.model": "Qwen/Qwen3-32B"}, Method.LORA, Device.CUDA, (1, 8), Engine.FSDP2,
        "the base has 32 B parameters: 59.6 GiB are more than a third of the 80 GiB of a GPU"),
    "unless it is stored in four bits": (
        {"job.model": "Qwen/Qwen3-32B"}, Method.QLORA, Device.CUDA, (1, 8), Engine.DDP, "17.9 GiB are at most"),
    "modules that are trained in full are sharded": (
        {"training.lora.modules_to_save": ["lm_head"]}, Method.LORA, Device.CUDA, (1, 8), Engine.FSDP2,
        "training.lora.modules_to_save trains whole modules"),
    "eight bits take more": (
        {"job.model": "Qwen/Qwen3-32B", "training.quantization.format": "int8"}, Method.QLORA, Device.CUDA, (1, 8),
        Engine.FSDP2, "32.8 GiB are more than"),
    "a larger one is sharded there too": (
        {"job.model": "meta-llama/Llama-3.1-70B"}, Method.QLORA, Device.CUDA, (1, 8), Engine.FSDP2, "39.1 GiB are"),
    "a base of unknown size is": (
        {"job.model": "pvc://models/ours"}, Method.LORA, Device.CUDA, (1, 8), Engine.FSDP2, "does not say how large"),
    "fsdp false keeps it whole": (
        {"job.model": "Qwen/Qwen3-32B", f"{P}.fsdp": False}, Method.LORA, Device.CUDA, (1, 8), Engine.DDP,
        f"{P}.fsdp is false"),
    "no_shard is plain data parallelism": (
        {f"{P}.fsdp": True, f"{P}.fsdp_sharding_strategy": "NO_SHARD"}, Method.FFT, Device.CUDA, (1, 8), Engine.DDP,
        "is no_shard"),
    "hybrid sharding shards inside nodes": (HYBRID, Method.FFT, Device.CUDA, (2, 4), Engine.HSDP, "is hybrid_shard."),
    "on one node it is full sharding": (HYBRID, Method.FFT, Device.CUDA, (1, 8), Engine.FSDP2, "there is one node"),
    "with one rank a node it is DDP": (HYBRID, Method.FFT, Device.CUDA, (4, 1), Engine.DDP, "nodes have one rank"),
    "processes on CPUs are not sharded": ({}, Method.FFT, Device.CPU, (1, 4), Engine.DDP, "small enough"),
    "DeepSpeed without a stage is stage 2": (
        {f"{P}.use_deepspeed": True}, Method.FFT, Device.CUDA, (1, 8), Engine.ZERO2, "no stage is given: 2"),
    "DeepSpeed counts although fsdp is false": (
        {f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3, f"{P}.fsdp": False}, Method.FFT, Device.CUDA, (1, 8),
        Engine.ZERO3, f"{P}.deepspeed_stage is 3"),
    "DeepSpeed has nothing to divide on one GPU": (
        {f"{P}.use_deepspeed": True}, Method.FFT, Device.CUDA, (1, 1), Engine.SINGLE, "one replica"),
    "but moves state to its host": (
        {f"{P}.use_deepspeed": True, f"{P}.offload_optimizer_device": "cpu"}, Method.FFT, Device.CUDA, (1, 1),
        Engine.ZERO2, "no stage is given: 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_engine(case: str) -> None:
    changes, method, device, (nodes, each), engine, reason = CASES[case]
    layout = Layout(nodes, each, nodes * each, 1, 1, ())
    job = read(resource(changes))
    stored = BaseFormat(job.quantization.format.value) if method is Method.QLORA else Precision.BF16
    whole = job.lora.modules_to_save
    base = Base(job.model.value, stored, 80, whole.key if whole.value else "")
    found, why = resolve_engine(job.engine, method, layout, device, base)
    assert (found, reason in why) == (engine, True), why


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen3-32B", 32), ("Qwen/Qwen2.5-0.5B-Instruct", 0.5), ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.135),
        ("google/gemma-3-27b-it", 27), ("mistralai/Mixtral-8x22B-v0.1", 176), ("Qwen/Qwen3-30B-A3B", 30),
        ("openai/gpt-oss-120b", 120), ("pvc://models/llama-70b/2", 70), ("meta-llama/Llama-3.1-405B@v1", 405),
        ("microsoft/Phi-3-mini-4k-instruct", None), ("deepseek-ai/DeepSeek-V3", None), ("gpt2", None),
        ("x/3bit", None),
    ],
)  # fmt: skip
def test_most_names_say_how_large_a_model_is(model: str, billions: float | None) -> None:
    assert parameters(model) == (None if billions is None else pytest.approx(billions * 1e9))


@pytest.mark.parametrize(
    ("bf16", "fp16", "gpu_type"), [*product((None, False, True), (None, False, True), ("H100", "CPU", "cpu"))]
)
@pytest.mark.parametrize("key", [{f"{P}.rounding": "nearest"}, {f"{P}.weights": "bf16"}], ids=str)
def test_what_is_for_bf16_is_refused_where_the_plan_computes_in_another_format(
    key: Json, bf16: bool | None, fp16: bool | None, gpu_type: str
) -> None:
    job = resource({f"{P}.bf16": bf16, f"{P}.fp16": fp16, "compute.gpu_type": gpu_type, **key})
    precision = resolve(job, PlanSettings()).precision
    contradicts = precision is not Precision.BF16 or (bf16 and fp16)
    assert [p.reason for p in validate(job, PlanSettings()).problems] == ["PrecisionContradiction"] * bool(
        contradicts
    )


ROUNDINGS: dict[str, tuple[Json, Rounding]] = {
    "a job without a key": ({}, Rounding.STOCHASTIC),
    "ZeRO": ({f"{P}.use_deepspeed": True}, Rounding.NEAREST),
    "ZeRO, and nearest": ({f"{P}.use_deepspeed": True, f"{P}.rounding": "nearest"}, Rounding.NEAREST),
    "stage 0, which is data parallel": (
        {f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 0}, Rounding.STOCHASTIC),
}  # fmt: skip


@pytest.mark.parametrize("gpus", [1, 4, 8])
@pytest.mark.parametrize("case", ROUNDINGS)
def test_how_a_job_rounds_does_not_depend_on_its_number_of_gpus(case: str, gpus: int) -> None:
    """It is in the identity of a run, which goes on with another number."""
    changes, rounding = ROUNDINGS[case]
    job = resource({**changes, "compute.gpu_count": gpus})
    assert validate(job, PlanSettings()).problems == ()
    assert resolve(job, PlanSettings()).run_config.rounding is rounding


ADAPTERS: dict[str, tuple[Json, str]] = {
    "mode": ({"training.mode": "lora"}, "training.mode = 'lora'"),
    "train_kind": ({"hyperparameters.train_kind": "peft"}, "hyperparameters.train_kind = 'peft'"),
    "variety": ({"algorithm.variety": "lora"}, "algorithm.variety is lora."),
    "trainer_mode": ({"policy.trainer_mode": "lora"}, "policy.trainer_mode is lora."),
    "a rank": ({"hyperparameters.lora.r": 8}, "hyperparameters.lora.r is given, and no key names a method."),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_keep_fp32_weights_whatever_key_selects_them(case: str) -> None:
    changes, why = ADAPTERS[case]
    [problem] = validate(resource({**changes, f"{P}.weights": "bf16"}), PlanSettings()).problems
    assert (problem.path, problem.reason) == (f"spec.{P}.weights", "MethodContradiction")
    assert why in problem.message
    assert validate(resource({**changes, f"{P}.weights": "fp32"}), PlanSettings()).problems == ()


FFT: dict[str, tuple[Json, str]] = {
    "mode": ({"training.mode": "full"}, ""),
    "train_kind": ({"hyperparameters.train_kind": "fft"}, ""),
    "variety": ({"algorithm.variety": "fft"}, "algorithm.variety is fft."),
    "nothing": ({}, "no key names a method"),
}


@pytest.mark.parametrize("case", FFT)
def test_full_finetuning_has_nothing_to_merge_whatever_key_selects_it(case: str) -> None:
    changes, why = FFT[case]
    first, *_ = validate(resource({**changes, "output.merge": True}), PlanSettings()).problems
    assert (first.path, first.reason) == ("spec.output.merge", "MethodContradiction")
    assert why in first.message.lower() or why in first.message
    assert "training.mode: lora" in first.remedy
    assert validate(resource({**changes, "output.merge": False}), PlanSettings()).problems == ()


@pytest.mark.parametrize("case", ["mode", "train_kind", "variety"])
def test_full_finetuning_continues_from_no_adapter_whatever_key_selects_it(case: str) -> None:
    changes, why = FFT[case]
    [problem] = validate(resource({**changes, "training.lora.from": "org/adapter"}), PlanSettings()).problems
    assert (problem.path, problem.reason) == ("spec.training.lora.from", "MethodContradiction")
    assert why in problem.message
    assert "training.mode: lora" in problem.remedy


LATER: dict[str, tuple[Any, Any]] = {
    f"{P}.rounding": ("stochastic", "nearest"),
    f"{P}.weights": ("fp32", "bf16"),
    f"{P}.tf32": (False, True),
    "training.deterministic": (False, True),
    "output.merge": (False, True),
}
"""Keys that version 0.1.0 does not have: the default, and another value."""


@pytest.mark.parametrize("key", LATER)
def test_the_run_configuration_has_a_later_key_only_where_it_differs_from_the_default(key: str) -> None:
    name, (default, other) = key.rpartition(".")[2], LATER[key]
    without, same, differs = (
        resolve(resource({key: value}), PlanSettings()).config_json for value in (None, default, other)
    )
    assert name not in json.loads(without)
    assert same == without
    assert json.loads(differs) == {**json.loads(without), name: other}


def test_the_run_configuration_says_what_is_on_the_host_only_where_something_is() -> None:
    keys = {f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3, "compute.gpu_count": 4}
    without, none, both = (
        json.loads(resolve(resource(keys | offload), PlanSettings()).config_json)
        for offload in ({}, {f"{P}.offload_optimizer_device": "none"}, {f"{P}.offload_optimizer_device": "cpu"})
    )
    assert "offload" not in without
    assert none == without
    assert both == without | {"offload": {"optimizer": True, "parameters": False}}


@pytest.mark.parametrize(
    ("given", "document"),
    [
        ("auto", {"activation_checkpointing": False}),
        (True, {"activation_checkpointing": True}),
        ("full", {"activation_checkpointing": True}),
        (False, {"activation_checkpointing": False, "recompute": "none"}),
        ("none", {"activation_checkpointing": False, "recompute": "none"}),
        ("selective", {"activation_checkpointing": True, "recompute": "selective"}),
    ],
)
def test_the_default_and_full_are_said_in_the_key_that_version_0_1_0_has(given: str | bool, document: Json) -> None:
    without, found = (
        json.loads(resolve(resource({f"{P}.activation_checkpointing": value}), PlanSettings()).config_json)
        for value in (None, given)
    )
    assert found == without | document
    assert "recompute" not in without


def test_results_count_whatever_is_recomputed() -> None:
    """A job that said false before the other words were known is still the one whose result a claim remembers."""
    found = {
        digest(resolve(resource({f"{P}.activation_checkpointing": value}), PlanSettings()).run_config)
        for value in (None, "auto", False, "none")
    }
    assert len(found) == 1


@pytest.mark.parametrize("given", ["True", "some", 1, 0, "", ["full"], {}])
def test_another_value_of_activation_checkpointing_is_refused(given: Any) -> None:
    [problem] = validate(resource({f"{P}.activation_checkpointing": given}), PlanSettings()).problems
    assert (problem.path, problem.reason) == (f"spec.{P}.activation_checkpointing", "UnknownValue")
    assert problem.message.endswith("is not one of true, false, 'none', 'selective', 'full' or 'auto'.")


@pytest.mark.parametrize(
    ("changes", "computes"),
    [
        ({f"{P}.bf16": False}, ""),
        ({}, "in bf16 on GPUs"),
        ({f"{P}.fp16": True, f"{P}.bf16": False}, "in fp16 on GPUs"),
        ({f"{P}.bf16": False, "compute.gpu_type": "CPU"}, "in fp32 on CPUs"),
    ],
)
def test_tf32_that_changes_nothing_is_a_note(changes: Json, computes: str) -> None:
    found = {
        note.reason: note.sentence for note in resolve(resource({f"{P}.tf32": True} | changes), PlanSettings()).notes
    }
    assert ("Tf32Unused" in found) == bool(computes)
    assert computes in found.get("Tf32Unused", "")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, ""),
        ({f"{P}.offload_param_device": "none"}, ""),
        ({f"{P}.offload_param_device": "cpu"}, f"{P}.offload_param_device"),
        ({f"{P}.deepspeed_config": {"zero_optimization": {"cpu_offload": True}}},
         f"{P}.deepspeed_config.zero_optimization.cpu_offload"),
        ({f"{P}.offload_param_device": "cpu", "pods.memory": "64Gi"}, ""),
    ],
)  # fmt: skip
def test_offload_into_memory_that_no_pod_asks_for_is_a_note(changes: Json, key: str) -> None:
    job = resource({f"{P}.use_deepspeed": True, f"{P}.deepspeed_stage": 3} | changes)
    found = {note.reason: note.sentence for note in resolve(job, PlanSettings()).notes}
    assert ("HostMemoryUnasked" in found) == bool(key)
    assert key in found.get("HostMemoryUnasked", "")


OWN: dict[str, tuple[str, str, bool]] = {
    "the output": ("pvc://models/here/", "pvc://models/here", False),
    "its result": ("pvc://models/here/result", "pvc://models/here", False),
    "the output of another job": ("pvc://models/there", "pvc://models/here", True),
    "a name on the Hub": ("models/here", "pvc://models/here", True),
}


@pytest.mark.parametrize("case", OWN)
def test_a_job_continues_from_no_adapter_that_it_writes_itself(case: str) -> None:
    source, output, legal = OWN[case]
    found = validate(resource({"training.lora.from": source, "output.uri": output}), PlanSettings()).problems
    assert [(p.path, p.reason) for p in found] == (
        [] if legal else [("spec.training.lora.from", "AdapterContradiction")]
    )
