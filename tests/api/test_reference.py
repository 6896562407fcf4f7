"""`explain` tells what a key means and what fits, and names the nearest key on a miss."""

from __future__ import annotations

import pytest

from finetune_api.codegen.reference import NoSuchKeyError, entries, explain
from finetune_api.resource.aliases import PER_NODE
from finetune_api.resource.keys import keys
from finetune_api.resource.v1alpha1 import Spec


def test_every_key_can_be_explained() -> None:
    for key in keys(Spec):
        lines = explain(key.path).splitlines()
        assert lines[0] == key.path.removeprefix("spec.")
        assert lines[1].strip() == key.field.description
        assert f"  Fate:  {key.fate}." in lines


def test_a_key_is_explained_with_its_bounds_and_rules() -> None:
    keep = f"Keep one of {', '.join(PER_NODE)}, or give them the same value."
    assert explain("compute.gpus_per_node").splitlines()[:5] == [
        "compute.gpus_per_node",
        "  Accelerators of one machine.",
        "  Fits:  integer, 1 to 64.",
        "  Fate:  honoured.",
        f"  Rule:  Keys with the same meaning have different values. {keep} [Contradiction]",
    ]


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        ("hyperparameters.learning_rate", "number, more than 0, at most 1"),
        ("lora.dropout", "number, at least 0, less than 1"),
        ("training.use_qlora", "true or false"),
        ("training.mode", "fft or full or full_finetune or lora or qlora or sft_offline"),
        ("lora.target_modules", "list of 1 to 64 entries (string, 1 to 128 characters)"),
        ("tags", "map of up to 64 entries, as text up to 16384 characters"),
        ("pods.env", "list of up to 64 entries (section)"),
        ("pods.env[3].name", "string, 1 to 128 characters, matching `^[A-Za-z_][A-Za-z0-9_]*$`, required"),
        ("storage", "section"),
    ],
)
def test_bounds_are_said_in_words(path: str, fits: str) -> None:
    assert f"  Fits:  {fits}." in explain(path).splitlines()


def test_a_section_lists_its_keys() -> None:
    assert explain("spec.queue").splitlines()[-3:] == [
        "  Keys:",
        "    name           LocalQueue that admits the job.",
        "    priorityClass  WorkloadPriorityClass of the job.",
    ]


def test_a_list_of_sections_lists_the_keys_of_an_entry() -> None:
    assert explain("pods.env").splitlines()[-2].startswith("    name ")


@pytest.mark.parametrize("path", ["", "spec"])
def test_the_whole_job_lists_its_sections(path: str) -> None:
    lines = explain(path).splitlines()
    assert lines[0] == "What to train, on what, and how."
    assert len(lines) == 2 + sum("." not in path for path in entries())


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("learning_rate", "hyperparameters.learning_rate"),
        ("compute.gputype", "compute.gpu_type"),
        ("training.lerning_rate", "hyperparameters.learning_rate"),
        ("pods.env[0].vale", "pods.env[].value"),
    ],
)
def test_a_miss_names_the_nearest_key(path: str, near: str) -> None:
    with pytest.raises(NoSuchKeyError) as error:
        explain(path)
    assert str(error.value) == f"A job has no key {path!r}. Did you mean {near}?"


def test_a_wild_miss_names_none() -> None:
    with pytest.raises(NoSuchKeyError, match=r"^A job has no key 'zzz'\.$"):
        explain("zzz")
