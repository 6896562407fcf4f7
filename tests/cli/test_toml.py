"""The TOML files that people come with: published ones, validated as they are.

test_published_qlora.py trains those of QLoRA.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.calls import finetune

FOLDER = Path(__file__).parent / "toml"
P = "hyperparameters.parallelism"
MISPLACED = [
    (f"{P}.{key}", "UnknownKey") for key in (
        "eval_steps", "evaluation_strategy", "greater_is_better", "load_best_model_at_end", "metric_for_best_model",
        "save_best_model_at_end",
    )
]  # fmt: skip
EXPECTED: dict[str, tuple[list[tuple[str, str]], str | None, str | None, int]] = {
    "crafter_fft.toml": ([], "fft", "zero3", 4),
    "qwen3_32b_fft_4xh100.toml": ([], "fft", "fsdp2", 4),
    "multi_gpu_fft_8xh100.toml": ([], "fft", "fsdp2", 8),
    "multi_gpu_qlora_4xh100.toml": ([], "qlora", "zero2", 4),
    "qlora_small.toml": ([], "qlora", "zero2", 4),
    "qlora_minimal.toml": ([], "qlora", "single", 1),
    "crafter_lora_qwen0p6b.toml": ([], "qlora", "single", 1),
    "coder_lora_small.toml": ([], "qlora", "single", 1),
    "coder_lora_4b.toml": ([], "qlora", "single", 1),
    "coder_lora_30b.toml": ([], "qlora", "single", 1),
    "crafter_sft_qwen30b_lora.toml": ([], "qlora", "zero2", 2),
    "sft_vision_small.toml": ([], "qlora", "single", 1),
    "crafter_vlm_sft_example.toml": (MISPLACED, None, None, 0),
    "sft_sample.toml": ([("data.validation_path", "DataRefused")], "qlora", "ddp", 4),
}  # fmt: skip
"""File -> problems; method, engine and ranks, where the keys are known."""


def _answer(*arguments: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(finetune("validate", *arguments, "-o", "json").stdout)
    return answer


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_toml_is_accepted_or_refused_by_name(name: str) -> None:
    answer = _answer(FOLDER / name, "--dataset", "pvc://rows/train.jsonl", "--output", "pvc://models/out")
    errors, method, engine, ranks = EXPECTED[name]
    assert [(e["path"], e["reason"]) for e in answer["errors"]] == errors
    assert answer["valid"] == (not errors)
    if method:
        assert (answer["method"], answer["engine"], answer["layout"]["worldSize"]) == (method, engine, ranks)


def test_the_keys_of_another_section_are_said_to_belong_there() -> None:
    answer = _answer(FOLDER / "crafter_vlm_sft_example.toml", "--dataset", "pvc://rows/train.jsonl")
    assert {error["path"].removeprefix(f"{P}."): error["remedy"] for error in answer["errors"]} == {
        key: f"Did you mean training.validation.{key}?"
        for key in ("eval_steps", "evaluation_strategy", "greater_is_better", "metric_for_best_model")
    } | dict.fromkeys(
        ("load_best_model_at_end", "save_best_model_at_end"),
        "Did you mean training.validation.save_best_model_at_end?",
    )


def test_every_toml_of_the_folder_is_expected_to_do_something() -> None:
    assert {path.name for path in FOLDER.glob("*.toml")} == set(EXPECTED)


def test_a_toml_without_data_needs_a_dataset(tmp_path: Path) -> None:
    [error] = _answer(FOLDER / "crafter_fft.toml", "--output", "pvc://models/out")["errors"]
    assert (error["path"], error["reason"]) == ("job.data", "MissingData")
    assert error["remedy"] == "Set job.data to a JSONL file, or give --dataset."


def test_a_toml_is_valid_and_what_a_cluster_needs_besides_is_noted() -> None:
    answer = _answer(FOLDER / "qwen3_32b_fft_4xh100.toml", "--dataset", "pvc://rows/train.jsonl")
    [note] = [note for note in answer["notes"] if note["reason"] == "OutputNotKept"]
    assert answer["valid"]
    assert "Set output.uri to pvc://CLAIM/FOLDER, or output.ephemeral to true" in note["sentence"]
    assert (answer["method"], answer["layout"]["worldSize"]) == ("fft", 4)


def test_what_a_published_toml_says_in_vain_is_named() -> None:
    answer = _answer(FOLDER / "multi_gpu_fft_8xh100.toml")
    assert answer["informational"] == [
        "spec.compute.variant", "spec.data.topology.container_count", "spec.data.topology.variant",
        "spec.hyperparameters.parallelism.fsdp_use_orig_params",
    ]  # fmt: skip
    assert "GlobalBatchDiffers" in [note["reason"] for note in answer["notes"]]


def test_problems_of_a_toml_are_told_in_its_own_words(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[job]\nmodel = "org/name"\ndata = "spec.job"\n[compute]\ngpu_typ = "H100"\n')
    problems = {e["path"]: e for e in _answer(file)["errors"]}
    assert problems["compute.gpu_typ"]["remedy"] == "Did you mean compute.gpu_type?"
    assert "spec." not in json.dumps([*problems.values()])
