"""What options change in a job."""

from __future__ import annotations

from typing import Any

import pytest

import builders
from finetune_cli.errors import InvalidInput
from finetune_cli.overrides import Overrides, apply, option_at

SPEC = {"job": {"data_path": "old.jsonl"}, "policy": {"source": "org/old", "temperature": 0.7}}
CASES: dict[str, tuple[Overrides, dict[str, Any]]] = {
    "no option changes nothing": (Overrides(), SPEC),
    "--dataset takes the place of either name": (
        Overrides(dataset="new.jsonl"),
        SPEC | {"job": {"data": "new.jsonl"}},
    ),
    "--model takes the place of every name": (
        Overrides(model="org/new"),
        {"job": {"data_path": "old.jsonl", "model": "org/new"}, "policy": {"temperature": 0.7}},
    ),
    "--examples": (Overrides(examples=3), SPEC | {"data": {"examples": 3}}),
    "--output": (Overrides(output="here"), SPEC | {"output": {"uri": "here"}}),
    "--set makes the sections on its way": (
        Overrides(assignments=("hyperparameters.parallelism.fsdp=true",)),
        SPEC | {"hyperparameters": {"parallelism": {"fsdp": True}}},
    ),
    "--set reads numbers as a job does": (
        Overrides(assignments=("hyperparameters.learning_rate=8e-6",)),
        SPEC | {"hyperparameters": {"learning_rate": 8e-6}},
    ),
    "--set reads lists": (
        Overrides(assignments=("lora.target_modules=[q_proj, v_proj]",)),
        SPEC | {"lora": {"target_modules": ["q_proj", "v_proj"]}},
    ),
    "--set keeps what stands behind the first equals sign": (
        Overrides(assignments=("job.description=a=b",)),
        SPEC | {"job": {"data_path": "old.jsonl", "description": "a=b"}},
    ),
    "--set comes last": (
        Overrides(dataset="a.jsonl", assignments=("job.data=b.jsonl",)),
        SPEC | {"job": {"data": "b.jsonl"}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_options_change_a_copy_of_the_job(case: str) -> None:
    changes, expected = CASES[case]
    before = builders.resource(spec=SPEC)
    assert apply(before, changes)["spec"] == expected
    assert before == builders.resource(spec=SPEC)


LORA = Overrides(dataset="a b.jsonl", assignments=("lora.target_modules=[q, 7]",))


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("spec.job.data", "--dataset a b.jsonl"),
        ("spec.lora.target_modules", "--set lora.target_modules=[q, 7]"),
        ("spec.lora.target_modules[1]", "--set lora.target_modules=[q, 7]"),
        ("spec.lora", ""),
        ("spec.lora.target_modules_too", ""),
        ("spec.data.examples", ""),
        ("metadata.name", ""),
    ],
)
def test_a_value_knows_its_option(path: str, option: str) -> None:
    assert option_at(LORA, path) == option


def test_the_last_option_counts_and_an_empty_one_is_one() -> None:
    given = Overrides(dataset="", model="m", assignments=("job={data: x}", "job.model=n"))
    assert option_at(given, "spec.job.model") == "--set job.model=n"
    assert option_at(given, "spec.job.data") == "--set job={data: x}"
    assert option_at(Overrides(dataset=""), "spec.job.data") == "--dataset "


WRONG = {
    "hyperparameters.learning_rate": "This does not assign a value to a key.",
    "=1": "This does not assign a value to a key.",
    "job..data=1": "This does not assign a value to a key.",
    "job.data_path.deeper=1": "data_path is not a section: its value is 'old.jsonl'.",
    "job.data=[1": "The value is not YAML",
    "job.data={a: 1, a: 2}": "The value is not YAML: duplicate key 'a'.",
}


@pytest.mark.parametrize("assignment", WRONG)
def test_an_assignment_that_cannot_be_made_is_refused(assignment: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        apply(builders.resource(spec=SPEC), Overrides(assignments=(assignment,)))
    [problem] = caught.value.problems
    assert problem.path.startswith("--set ")
    assert problem.message.startswith(WRONG[assignment])
    assert problem.remedy


def test_a_job_without_a_spec_gets_one() -> None:
    assert apply({"kind": "FinetuneJob"}, Overrides(dataset="a.jsonl"))["spec"] == {"job": {"data": "a.jsonl"}}


def test_an_output_that_is_named_is_kept() -> None:
    job = builders.resource(spec={"output": {"ephemeral": True}})
    assert apply(job, Overrides(output="here"))["spec"] == {"output": {"uri": "here"}}
