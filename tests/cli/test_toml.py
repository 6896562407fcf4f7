"""The TOML files that people come with: four published ones, validated as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.calls import finetune

FOLDER = Path(__file__).parent / "toml"
EXPECTED: dict[str, tuple[list[tuple[str, str]], str, str, int]] = {
    "crafter_fft.toml": ([("hyperparameters.parallelism.use_deepspeed", "Unsupported")], "fft", "zero3", 4),
    "qwen3_32b_fft_4xh100.toml": ([], "fft", "fsdp2", 4),
    "multi_gpu_fft_8xh100.toml": ([], "fft", "fsdp2", 8),
    "multi_gpu_qlora_4xh100.toml": (
        [("hyperparameters.parallelism.use_deepspeed", "Unsupported")], "qlora", "zero2", 4,
    ),
}  # fmt: skip
"""File -> problems, method, engine, ranks."""


def _answer(*arguments: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(finetune("validate", *arguments, "-o", "json").stdout)
    return answer


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_toml_is_accepted_or_refused_by_name(name: str) -> None:
    answer = _answer(FOLDER / name, "--set", "job.data=pvc://rows/train.jsonl", "--output", "pvc://models/out")
    errors, method, engine, ranks = EXPECTED[name]
    assert [(e["path"], e["reason"]) for e in answer["errors"]] == errors
    assert answer["valid"] == (not errors)
    assert (answer["method"], answer["engine"], answer["layout"]["worldSize"]) == (method, engine, ranks)


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
