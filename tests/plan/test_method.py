"""Which keys decide the method, in the order that satisfies every published file."""

from __future__ import annotations

import json

import pytest

from builders import Json, resource
from finetune_api.runtime.choices import Method
from finetune_plan.job_settings import read
from finetune_plan.method import resolve_method
from finetune_plan.resolve import resolve, validate
from finetune_plan.runconfig import resolve_lora
from finetune_plan.settings import PlanSettings
from finetune_plan.workload import workload

CASES: dict[str, tuple[Json, Method, str]] = {
    "a bare job is full finetuning": ({}, Method.FFT, "No key names a method"),
    "use_qlora wins over variety": (
        {"training.use_qlora": True, "algorithm.variety": "lora"}, Method.QLORA, "training.use_qlora is true."),
    "mode lora with use_qlora is QLoRA": (
        {"training.mode": "lora", "training.use_qlora": True, "hyperparameters.train_kind": "peft"},
        Method.QLORA, "training.use_qlora is true."),
    "mode lora without use_qlora is LoRA": (
        {"training.mode": "lora", "training.use_qlora": False, "hyperparameters.train_kind": "peft",
         "algorithm.variety": "lora"}, Method.LORA, "training.mode is lora."),
    "mode full_finetune is full finetuning": (
        {"training.mode": "full_finetune", "training.use_qlora": False}, Method.FFT,
        "training.mode is full_finetune."),
    "mode full needs no train_kind": ({"training.mode": "full"}, Method.FFT, "training.mode is full."),
    "sft_offline leaves it to train_kind": (
        {"training.mode": "sft_offline", "training.use_qlora": False, "hyperparameters.train_kind": "fft"},
        Method.FFT, "hyperparameters.train_kind is fft."),
    "sft_offline with use_qlora is QLoRA": (
        {"training.mode": "sft_offline", "training.use_qlora": True}, Method.QLORA, "training.use_qlora is true."),
    "variety fft wins over a LoRA block": (
        {"algorithm.variety": "fft", "hyperparameters.lora.r": 8}, Method.FFT, "algorithm.variety is fft."),
    "a LoRA block alone asks for adapters": (
        {"lora.r": 8}, Method.LORA, "lora.r is given, and no key names a method."),
    "variety qlora makes the adapters of mode lora quantised": (
        {"training.mode": "lora", "algorithm.variety": "qlora"}, Method.QLORA,
        "training.mode is lora and algorithm.variety is qlora."),
    "use_qlora false keeps variety qlora from quantising": (
        {"training.mode": "lora", "algorithm.variety": "qlora", "training.use_qlora": False},
        Method.LORA, "training.mode is lora."),
    "trainer_mode speaks last": ({"policy.trainer_mode": "full"}, Method.FFT, "policy.trainer_mode is full."),
    "train_kind wins over trainer_mode": (
        {"policy.trainer_mode": "full", "hyperparameters.train_kind": "peft"}, Method.LORA,
        "hyperparameters.train_kind is peft."),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_method(case: str) -> None:
    changes, method, reason = CASES[case]
    given = read(resource(changes))
    found, why = resolve_method(given.method, given.lora)
    assert found is method
    assert why.startswith(reason)


SPELLINGS: dict[str, Json] = {
    "training.lora": {"training.lora": {"r": 8, "alpha": 12.5, "dropout": 0.1, "target_modules": ["q_proj"]}},
    "lora": {"lora": {"r": 8, "alpha": 12.5, "dropout": 0.1, "target_modules": ["q_proj"]}},
    "hyperparameters.lora": {"hyperparameters.lora": {"r": 8, "alpha": 12.5, "dropout": 0.1,
                                                      "target_modules": ["q_proj"]}},
    "hyperparameters.lora_rank and its sisters": {
        "hyperparameters.lora_rank": 8, "hyperparameters.lora_alpha": 12.5, "hyperparameters.lora_dropout": 0.1,
        "hyperparameters.lora_target_modules": ["q_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_adapters_are_read_from_every_spelling(spelling: str) -> None:
    lora = resolve_lora(read(resource(SPELLINGS[spelling])).lora, Method.LORA)
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (8, 12.5, 0.1, ("q_proj",))


OPEN = "'(q_proj' is not a regular expression: missing ), unterminated subpattern"
PATTERNS: list[tuple[str, Json, str]] = [
    ("training.lora.target_modules", {"training.lora.target_modules": ["q_proj", "(q_proj"]}, OPEN),
    ("hyperparameters.lora_target_modules", {"hyperparameters.lora_target_modules": ["(q_proj"]}, OPEN),
    ("training.lora.rank_pattern", {"training.lora.rank_pattern": {"(q_proj": 8}}, OPEN),
    ("training.lora.alpha_pattern", {"training.lora.alpha_pattern": {"(q_proj": 8}}, OPEN),
    ("training.lora.target_modules", {"training.lora.target_modules": ["q{99999999999}"]}, "is too large"),
    (
        "training.lora.rank_pattern",
        {"training.lora.rank_pattern": {"(?i)q_proj": 8}},
        "global flags not at the start",
    ),
    (
        "training.lora.rank_pattern",
        {"training.lora.rank_pattern": {"(" * 3000: 8}},
        "it has more than 128 characters",
    ),
]


@pytest.mark.parametrize(("key", "changes", "message"), PATTERNS, ids=[f"{k}: {m}" for k, _, m in PATTERNS])
def test_what_is_no_regular_expression_is_refused(key: str, changes: Json, message: str) -> None:
    [problem] = validate(resource(changes), PlanSettings()).problems
    assert (problem.path, problem.reason) == (f"spec.{key}", "BadExpression")
    assert message in problem.message


def test_a_job_without_the_later_keys_has_the_document_of_before() -> None:
    lora = json.loads(resolve(resource({"training.mode": "lora"}), PlanSettings()).config_json)["lora"]
    assert lora == {"rank": 16, "alpha": 32.0, "dropout": 0.0, "target_modules": ["all-linear"]}


def test_an_adapter_to_continue_from_is_mounted_and_named_in_the_document() -> None:
    found = resolve(resource({"training.lora.from": "pvc://adapters/one/result"}), PlanSettings())
    assert found.method is Method.LORA
    assert found.run_config.lora is not None
    assert found.run_config.lora.source == "/mnt/claims/adapters/one/result"
    assert "adapters" in {mount.claim for mount in workload(found, PlanSettings()).mounts}


def test_the_default_scale_of_rslora_is_that_of_lora() -> None:
    lora = resolve_lora(read(resource({"training.lora": {"r": 64, "use_rslora": True}})).lora, Method.LORA)
    assert lora is not None
    assert lora.alpha / lora.rank**0.5 == 2


def test_of_several_patterns_the_longest_comes_first() -> None:
    patterns = {"a_proj": 1, "layers.0.*": 2, "b_proj": 3}
    found = resolve(resource({"training.lora.rank_pattern": patterns}), PlanSettings()).run_config.lora
    assert found is not None
    assert found.rank_pattern == (("layers.0.*", 2), ("a_proj", 1), ("b_proj", 3))


@pytest.mark.parametrize("key", ["training.lora.r", "lora.alpha", "training.lora.use_dora"])
def test_full_finetuning_says_that_it_has_no_adapters(key: str) -> None:
    notes = resolve(resource({"training.mode": "fft", key: True if "dora" in key else 8}), PlanSettings()).notes
    assert [note.sentence for note in notes if note.reason == "AdaptersUnused"] == [
        f"{key} is set, but full finetuning has no adapters."
    ]


def test_alpha_is_twice_the_rank_where_it_is_absent() -> None:
    lora = resolve_lora(read(resource({"lora.r": 8})).lora, Method.LORA)
    assert lora is not None
    assert (lora.alpha, lora.dropout, lora.target_modules) == (16, 0, ("all-linear",))
