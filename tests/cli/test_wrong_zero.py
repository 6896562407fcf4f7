"""Wrong uses of DeepSpeed ZeRO: the key, the reason, and a remedy that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.test_wrong_adapters import ADAPTERS, PARAMETERS, P, Wrong, require_refused_with_a_remedy_that_works

FOUR = "compute.gpu_count=4"
ZERO = (FOUR, f"{P}.use_deepspeed=true")
FSDP = (FOUR, f"{P}.use_deepspeed=false", f"{P}.fsdp=true")
LORA = (*ZERO, "training.mode=lora")
SAID = "which this version does not have with DeepSpeed ZeRO: "
REMEDY = (
    "Leave it out, or in hyperparameters.parallelism leave deepspeed_config out and set use_deepspeed to false and "
    "fsdp to true"
)
TO_ZERO = f"Leave it out, or set {P}.use_deepspeed to true and {P}.deepspeed_stage"
BOTH = "Set use_deepspeed or fsdp to false."

WRONG = {
    "stage 4": Wrong(
        (*ZERO, f"{P}.deepspeed_stage=4"), f"{P}.deepspeed_stage", "BadValue", "4", "Correct it",
        (*ZERO, f"{P}.deepspeed_stage=3")),
    "FSDP as well": Wrong(
        (*ZERO, f"{P}.fsdp=true"), f"{P}.fsdp", "EnginesExclude", "shard the same states", BOTH,
        (*ZERO, f"{P}.fsdp=false")),
    "two number formats": Wrong(
        (*ZERO, f"{P}.bf16=true", f"{P}.fp16=true"), f"{P}.fp16", "PrecisionContradiction", "both true", "Keep bf16.",
        (*ZERO, f"{P}.bf16=true")),
    "fp16": Wrong(
        (*ZERO, f"{P}.fp16=true"), f"{P}.use_deepspeed", "Unsupported", "does not have fp16 with DeepSpeed ZeRO",
        "Set it to false;", (*FSDP, f"{P}.fp16=true")),
    "layers that are cut": Wrong(
        (*ZERO, f"{P}.tensor_parallel_size=2"), f"{P}.tensor_parallel_size", "Unsupported", "cannot work",
        "Set it to 1;", (*ZERO, f"{P}.tensor_parallel_size=1")),
    "stochastic rounding": Wrong(
        (*ZERO, f"{P}.rounding=stochastic"), f"{P}.rounding", "Unsupported", SAID + "it rounds to the nearest",
        REMEDY,
        (*ZERO, f"{P}.rounding=nearest")),
    "moments of eight bits": Wrong(
        (*ZERO, "hyperparameters.optim=adamw_8bit"), "hyperparameters.optim", "Unsupported", SAID, REMEDY,
        (*FSDP, "hyperparameters.optim=adamw_8bit")),
    "weights on the host in stage 2": Wrong(
        (*ZERO, f"{P}.offload_param_device=cpu"), f"{P}.offload_param_device", "Unsupported",
        "is cpu, which this version does not have below stage 3 of DeepSpeed ZeRO: only stage 3",
        f"Leave it out, or set {P}.deepspeed_stage to 3.",
        (*ZERO, f"{P}.offload_param_device=cpu", f"{P}.deepspeed_stage=3")),
    "offload with FSDP": Wrong(
        (*FSDP, f"{P}.offload_optimizer_device=cpu"), f"{P}.offload_optimizer_device", "Unsupported",
        "does not have without DeepSpeed ZeRO: the engine of this job is fsdp2", f"{TO_ZERO} to 1, 2 or 3.",
        (*ZERO, f"{P}.offload_optimizer_device=cpu", f"{P}.deepspeed_stage=2")),
    "offload in stage 0": Wrong(
        (*ZERO, f"{P}.deepspeed_stage=0", f"{P}.offload_param_device=cpu"),
        f"{P}.offload_param_device", "Unsupported",
        "the engine of this job is ddp", f"{TO_ZERO} to 1, 2 or 3.",
        (*ZERO, f"{P}.deepspeed_stage=3", f"{P}.offload_param_device=cpu")),
    "offload on one GPU without ZeRO": Wrong(
        (f"{P}.offload_optimizer_device=cpu",), f"{P}.offload_optimizer_device", "Unsupported",
        "the engine of this job is single", f"{TO_ZERO} to 1, 2 or 3.",
        (f"{P}.use_deepspeed=true", f"{P}.offload_optimizer_device=cpu")),
    "offload to a disk": Wrong(
        (*ZERO, f"{P}.offload_optimizer_device=nvme"), f"{P}.offload_optimizer_device", "UnknownValue",
        "'nvme' is not one of 'none' or 'cpu'.",
        "Correct it", (*ZERO, f"{P}.offload_optimizer_device=cpu")),
    "DoRA": Wrong(
        (*LORA, f"{ADAPTERS}.use_dora=true"), f"{ADAPTERS}.use_dora", "Unsupported", SAID, REMEDY,
        (*LORA, f"{ADAPTERS}.use_dora=false")),
    "PiSSA": Wrong(
        (*LORA, f"{ADAPTERS}.init_lora_weights=pissa"), f"{ADAPTERS}.init_lora_weights", "Unsupported", SAID, REMEDY,
        (*FSDP, "training.mode=lora", f"{ADAPTERS}.init_lora_weights=pissa")),
    "biases": Wrong(
        (*LORA, f"{ADAPTERS}.bias=all"), f"{ADAPTERS}.bias", "Unsupported", SAID, REMEDY,
        (*LORA, f"{ADAPTERS}.bias=none")),
    "modules in full": Wrong(
        (*LORA, f'{ADAPTERS}.modules_to_save=["lm_head"]'), f"{ADAPTERS}.modules_to_save", "Unsupported",
        "is lm_head, " + SAID, REMEDY, LORA),
    "rows of tokens": Wrong(
        (*LORA, f'{ADAPTERS}.trainable_tokens=["<call>"]'), f"{ADAPTERS}.trainable_tokens", "Unsupported",
        "is <call>, " + SAID, REMEDY, LORA),
    "adapters on experts": Wrong(
        (*LORA, PARAMETERS), f"{ADAPTERS}.target_parameters", "Unsupported", SAID, REMEDY,
        (*FSDP, "training.mode=lora", PARAMETERS)),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_use_of_zero_is_refused_with_a_remedy_that_works(tmp_path: Path, case: str) -> None:
    require_refused_with_a_remedy_that_works(tmp_path, WRONG[case])
