"""A DeepSpeed dictionary means keys of the job, sizes of the engine, or nothing; the rest is refused by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders import Json, resource
from finetune_api.resource import key_table
from finetune_api.resource.status import MOST_INFORMATIONAL
from finetune_api.runtime.choices import Engine, Precision, Rounding
from finetune_api.runtime.run_config import Offload
from finetune_plan import deepspeed_dictionary as dictionary
from finetune_plan.resolve import resolve, validate
from finetune_plan.runconfig import digest
from finetune_plan.settings import PlanSettings

P, H = "hyperparameters.parallelism", "hyperparameters"
FOLDER = Path(__file__).parents[1] / "cli" / "deepspeed"
STAGE: Json = {"stage": 2}


def job(given: Json, **changes: Any) -> Json:
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return resource({"compute.gpu_count": 4, f"{P}.deepspeed_config": given, **keys})


def zero(**changes: Any) -> Json:
    return {"zero_optimization": STAGE | changes}


def problems(given: Json, **changes: Any) -> list[tuple[str, str]]:
    found = validate(job(given, **changes), PlanSettings()).problems
    return [(problem.path.removeprefix(f"spec.{P}.deepspeed_config."), problem.reason) for problem in found]


PUBLISHED: dict[str, tuple[Engine, Offload | None]] = {
    "zero1": (Engine.ZERO1, None),
    "zero1_compile": (Engine.ZERO1, None),
    "zero2": (Engine.ZERO2, None),
    "zero2_offload": (Engine.ZERO2, Offload(optimizer=True)),
    "zero3": (Engine.ZERO3, None),
    "zero3_bf16": (Engine.ZERO3, None),
    "zero3_offload_params": (Engine.ZERO3, Offload(parameters=True)),
    "zero3_offload_all": (Engine.ZERO3, Offload(optimizer=True, parameters=True)),
}
"""Written after the files that axolotl ships: the engine, and what is in the memory of the host."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_usual_dictionaries_are_valid(name: str) -> None:
    engine, offload = PUBLISHED[name]
    given = json.loads((FOLDER / f"{name}.json").read_text())
    assert problems(given) == []
    found = resolve(job(given), PlanSettings())
    assert (found.engine, found.precision) == (engine, Precision.BF16)
    assert found.run_config.rounding is Rounding.NEAREST
    assert found.run_config.offload == offload


SPELLED: dict[str, tuple[Json, str, Any]] = {
    "rows of a forward pass": ({"train_micro_batch_size_per_gpu": 3}, "batch.per_device", 3),
    "forward passes of a step": ({"gradient_accumulation_steps": 5}, "batch.accumulation", 5),
    "rows of a step": ({"train_batch_size": 24}, "batch.accumulation", 6),
    "clipping": ({"gradient_clipping": 0.3}, "optimizer.max_grad_norm", 0.3),
    "the number format": ({"bf16": {"enabled": False}}, "precision", "fp32"),
    "the learning rate": (
        {"optimizer": {"type": "AdamW", "params": {"lr": 0.003}}},
        "optimizer.learning_rate",
        0.003,
    ),
    "its other place": ({"scheduler": {"params": {"warmup_max_lr": 0.002}}}, "optimizer.learning_rate", 0.002),
    "weight decay": ({"optimizer": {"params": {"weight_decay": 0.25}}}, "optimizer.weight_decay", 0.25),
    "the schedule": ({"scheduler": {"type": "WarmupDecayLR"}}, "schedule.name", "linear"),
    "the stage": ({"zero_optimization": {"stage": 3}}, "engine", "zero3"),
    "offload of the optimizer": (
        {"zero_optimization": STAGE | {"offload_optimizer": {"device": "cpu", "pin_memory": False, "ratio": 1.0}}},
        "offload",
        Offload(optimizer=True),
    ),
    "its old spelling": (
        {"zero_optimization": STAGE | {"cpu_offload": True, "cpu_offload_use_pin_memory": True}},
        "offload",
        Offload(optimizer=True),
    ),
    "its old spelling, switched off": (
        {"zero_optimization": STAGE | {"cpu_offload": False}},
        "offload",
        None,
    ),
    "offload of weights": (
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "buffer_count": 5}}},
        "offload",
        Offload(parameters=True),
    ),
    "its old spelling, too": (
        {"zero_optimization": {"stage": 3, "cpu_offload_param": True}},
        "offload",
        Offload(parameters=True),
    ),
}


@pytest.mark.parametrize("case", SPELLED)
def test_a_value_is_another_spelling_of_a_key_of_the_job(case: str) -> None:
    given, path, value = SPELLED[case]
    at: Any = resolve(job(zero() | given), PlanSettings()).run_config
    for name in path.split("."):
        at = getattr(at, name)
    assert at == value
    assert problems(zero() | given) == []


SIZES: dict[str, tuple[str, int]] = {
    "reduce_bucket_size": ("reduce_bucket", 1000), "allgather_bucket_size": ("allgather_bucket", 2000),
    "stage3_prefetch_bucket_size": ("prefetch_bucket", 0), "sub_group_size": ("sub_group", 0),
    "stage3_param_persistence_threshold": ("persistence_threshold", 7),
    "stage3_max_live_parameters": ("max_live_parameters", 0), "stage3_max_reuse_distance": ("max_reuse_distance", 9),
}  # fmt: skip


@pytest.mark.parametrize("key", SIZES)
def test_a_size_reaches_the_engine_and_changes_nothing_else(key: str) -> None:
    name, size = SIZES[key]
    stage = 2 if key.startswith("allgather") else 3
    with_it = resolve(job(zero(stage=stage, **{key: size})), PlanSettings()).run_config
    assert with_it.zero is not None
    assert with_it.zero.model_dump(exclude_none=True) == {name: size}
    without = resolve(job(zero(stage=stage, **{key: "auto"})), PlanSettings()).run_config
    assert without.zero is None
    assert with_it.model_copy(update={"zero": None}) == without
    assert digest(with_it) == digest(without)


@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_the_stage_does_not_have_is_named(key: str) -> None:
    stage = 3 if key.startswith("allgather") else 0 if key.startswith("reduce") else 1
    found = resolve(job(zero(stage=stage, **{key: SIZES[key][1]})), PlanSettings())
    assert found.run_config.zero is None
    assert found.job.informational == (f"spec.{P}.deepspeed_config.zero_optimization.{key}",)


def test_a_stage_that_is_left_to_the_job_has_the_sizes_of_the_default() -> None:
    found = resolve(job(zero(stage="auto", allgather_bucket_size=5, sub_group_size=6)), PlanSettings())
    assert found.run_config.zero is not None
    assert found.run_config.zero.model_dump(exclude_none=True) == {"allgather_bucket": 5}
    assert found.job.informational == (f"spec.{P}.deepspeed_config.zero_optimization.sub_group_size",)


WRONG: dict[str, tuple[Json, Json, str, str, str]] = {
    "another batch than the job's": (
        {"train_micro_batch_size_per_gpu": 4}, {f"{H}.per_device_batch": 2}, "train_micro_batch_size_per_gpu",
        "Contradiction", "train_micro_batch_size_per_gpu is 4, and hyperparameters.per_device_batch is 2."),
    "an optimizer that ZeRO does not have": (
        {"optimizer": {"type": "adamw_8bit"}}, {}, "optimizer.type", "Unsupported", "its optimizer is torch's AdamW"),
    "another stage than the job's": (
        {}, {f"{P}.deepspeed_stage": 3}, "zero_optimization.stage", "Contradiction", "deepspeed_stage is 3."),
    "two learning rates": (
        {"optimizer": {"params": {"lr": 0.1}}, "scheduler": {"params": {"warmup_max_lr": 0.2}}}, {},
        "scheduler.params.warmup_max_lr", "Contradiction", "deepspeed_config.optimizer.params.lr is 0.1."),
    "fp16 and bf16": ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, {}, "fp16.enabled",
        "PrecisionContradiction", "both true"),
    "stage 4": ({"zero_optimization": {"stage": 4}}, {}, "zero_optimization.stage", "BadValue", "4"),
    "an optimizer that is not there": (
        {"optimizer": {"type": "Lion"}}, {}, "optimizer.type", "UnknownValue", "Lion"),
    "weights in the memory of the host in stage 2": (
        {"zero_optimization": STAGE | {"offload_param": {"device": "cpu"}}}, {},
        "zero_optimization.offload_param.device", "Unsupported", "does not have below stage 3 of DeepSpeed ZeRO"),
    "the same in its old spelling": (
        {"zero_optimization": STAGE | {"cpu_offload_param": True}}, {}, "zero_optimization.cpu_offload_param",
        "Unsupported", "does not have below stage 3 of DeepSpeed ZeRO"),
    "state on a disk": (
        {"zero_optimization": STAGE | {"offload_optimizer": {"device": "nvme"}}}, {},
        "zero_optimization.offload_optimizer.device", "UnknownValue", "'nvme' is not one of"),
    "a part of the state": (
        {"zero_optimization": STAGE | {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, {},
        "zero_optimization.offload_optimizer.ratio", "Unsupported", "all of the optimizer's state is moved"),
    "another offload than the job's": (
        {"zero_optimization": STAGE | {"offload_optimizer": {"device": "cpu"}}},
        {f"{P}.offload_optimizer_device": "none"}, "zero_optimization.offload_optimizer.device", "Contradiction",
        "offload_optimizer_device is 'none'."),
    "offload in stage 0": (
        {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, {},
        "zero_optimization.offload_optimizer.device", "Unsupported", "without DeepSpeed ZeRO"),
    "gradients that are communicated in fp16": (
        {"communication_data_type": "fp16"}, {}, "communication_data_type", "Unsupported", "communicated in fp32"),
    "a warmup in steps": (
        {"scheduler": {"params": {"warmup_num_steps": 100}}}, {}, "scheduler.params.warmup_num_steps", "Unsupported",
        "hyperparameters.warmup_ratio"),
    "a size that is none": (
        {"zero_optimization": STAGE | {"reduce_bucket_size": -1}}, {}, "zero_optimization.reduce_bucket_size",
        "BadValue", "a whole number, 1 or more"),
    "a typo": ({"zero_optimization": STAGE | {"overlap_com": True}}, {}, "zero_optimization.overlap_com",
        "UnknownKey", "has no meaning here"),
    "another thing": ({"elasticity": {"enabled": True}}, {}, "elasticity.enabled", "Unsupported", "not supported"),
    "an empty map that is not known": (zero(zenflow={}), {}, "zero_optimization.zenflow", "UnknownKey", "no meaning"),
    "an empty map for a value": ({"optimizer": {"type": {}}}, {}, "optimizer.type", "BadValue", "must be a string"),
    "a value for a map": ({"bf16": True}, {}, "bf16", "BadValue", "it must be a map"),
    "a name with a dot": (
        {"zero_optimization.stage": 1}, {}, '"zero_optimization.stage"', "UnknownKey", "has no meaning here"),
    "both names of a size": (
        zero(prefetch_bucket_size=5, stage3_prefetch_bucket_size=7), {},
        "zero_optimization.stage3_prefetch_bucket_size", "Contradiction", "prefetch_bucket_size is 5."),
    "fsdp": ({}, {f"{P}.fsdp": True}, "", "EnginesExclude", "A DeepSpeed dictionary is given"),
    "no deepspeed": ({}, {f"{P}.use_deepspeed": False}, "", "Contradiction", "use_deepspeed is false"),
    "two settings of rows": (
        {"train_micro_batch_size_per_gpu": 4}, {f"{H}.batch_size": 2}, "train_micro_batch_size_per_gpu",
        "Contradiction", "Given: hyperparameters.parallelism.deepspeed_config.train_micro_batch_size_per_gpu = 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_it_cannot_mean_is_refused_by_its_path(case: str) -> None:
    given, changes, path, reason, said = WRONG[case]
    whole = resource({"compute.gpu_count": 4, f"{P}.deepspeed_config": {**zero(), **given}, **changes})
    [problem] = validate(whole, PlanSettings()).problems
    assert (problem.path, problem.reason) == (f"spec.{P}.deepspeed_config.{path}".rstrip("."), reason)
    assert said in problem.message
    assert problem.remedy


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        ({"train_batch_size": "auto"}, {}, "Missing"),
        (zero(), {f"{P}.use_deepspeed": False}, "Contradiction"),
        ("zero3.json", {}, "BadValue"),
        ([1], {}, "BadValue"),
        ({"a": {str(number): 1 for number in range(300)}}, {}, "BadValue"),
    ],
)
def test_a_dictionary_that_says_nothing_of_zero_is_refused(given: Any, changes: Json, reason: str) -> None:
    whole = resource({"compute.gpu_count": 4, f"{P}.deepspeed_config": given, **changes})
    [problem] = validate(whole, PlanSettings()).problems
    assert (problem.path, problem.reason) == (f"spec.{P}.deepspeed_config", reason)


def test_of_many_unknown_keys_the_first_are_explained() -> None:
    found = validate(job(zero() | {f"k{number}": 1 for number in range(30)}), PlanSettings()).problems
    assert [problem.reason for problem in found] == ["UnknownKey"] * 11
    assert found[0].message == "20 more keys of the DeepSpeed dictionary have no meaning here."
    long = validate(job(zero() | {"x" * 9000: {str(number): 1 for number in range(200)}}), PlanSettings()).problems
    assert sum(len(problem.path) + len(problem.message) + len(problem.remedy) for problem in long) < 10_000


def test_a_rise_of_the_learning_rate_that_is_not_deepspeeds_is_noted() -> None:
    notes = [
        {note.reason for note in resolve(job(zero() | {"scheduler": given}), PlanSettings()).notes}
        for given in ({"type": "WarmupLR"}, {"type": "WarmupLR", "params": {"warmup_type": "linear"}})
    ]
    assert [sorted(each) for each in notes] == [["ValidationSkipped", "WarmupDiffers"], ["ValidationSkipped"]]


@pytest.mark.parametrize(("stage", "wanted"), [(2, "to 3."), (0, "to 1, 2 or 3.")])
def test_the_way_out_is_in_the_dictionary_where_the_stage_is(stage: int, wanted: str) -> None:
    given = zero(stage=stage, offload_param={"device": "cpu"})
    [problem] = validate(job(given), PlanSettings()).problems
    assert problem.remedy.endswith(f"{P}.deepspeed_config.zero_optimization.stage {wanted}")
    assert problems(zero(stage=3, offload_param={"device": "cpu"}), **{f"{P}.use_deepspeed": True}) == []


def test_all_names_of_torchs_adamw_are_one() -> None:
    assert problems(zero() | {"optimizer": {"type": "AdamW"}}, hyperparameters__optim="adamw_torch_fused") == []


def test_what_is_switched_off_is_named_once() -> None:
    given = zero() | {"flops_profiler": {"enabled": False, "profile_step": 1, "top_modules": 3}}
    assert problems(given) == []
    assert resolve(job(given), PlanSettings()).job.informational == (f"spec.{P}.deepspeed_config.flops_profiler",)
    on = zero() | {"flops_profiler": {"enabled": True, "profile_step": 1}}
    assert [path for path, _ in problems(on)] == ["flops_profiler.enabled", "flops_profiler.profile_step"]


def test_what_changes_nothing_is_named() -> None:
    given = zero(overlap_comm=True) | {"steps_per_print": 10, "fp16": {"loss_scale": 0}}
    assert resolve(job(given), PlanSettings()).job.informational == tuple(
        f"spec.{P}.deepspeed_config.{path}" for path in
        ("zero_optimization.overlap_comm", "steps_per_print", "fp16.loss_scale")
    )  # fmt: skip


def test_the_status_has_room_for_all_that_may_change_nothing() -> None:
    declared = sum(key.fate is key_table.Fate.INFORMATIONAL for key in key_table.declared())
    idle = dictionary.Nothing | dictionary.EngineSize
    found = sum(isinstance(meaning, idle) for meaning in dictionary.MEANINGS.values())
    off = sum(path.endswith(".enabled") for path in dictionary.MEANINGS)
    assert declared + found + off <= MOST_INFORMATIONAL


def test_a_reason_names_the_value_in_the_dictionary() -> None:
    found = resolve(job(zero()), PlanSettings())
    assert found.engine_reason == f"{P}.deepspeed_config.zero_optimization.stage is 2."


def test_every_key_that_is_meant_exists() -> None:
    meant = {meaning.key for meaning in dictionary.MEANINGS.values() if isinstance(meaning, dictionary.Spelling)}
    assert meant <= {key.path for key in key_table.declared()}
