"""Every rule says no to the job that breaks it, and yes to the one that only just does not."""

from __future__ import annotations

from typing import Any

import pytest

from api.cases import CASES, Case
from builders import resource
from finetune_api.validation import check
from finetune_api.validation.rules import all_rules

CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.sentence)


@CASE
def test_a_job_that_breaks_the_rule_is_refused_by_it(case: Case) -> None:
    found = check.problems(resource(case.wrong))
    assert [(p.path, p.reason) for p in found if p.message.startswith(case.message)] == [
        (f"spec.{case.path}", case.reason)
    ], found
    assert all(p.remedy for p in found)


@CASE
def test_a_job_that_just_keeps_the_rule_is_fine(case: Case) -> None:
    assert check.problems(resource(case.near)) == []


def test_every_rule_has_a_case() -> None:
    judged = {(case.path, case.reason, case.message) for case in CASES}
    for rule in all_rules():
        mine = [m for p, r, m in judged if (p, r) == (rule.path, rule.reason) and rule.message.startswith(m)]
        assert mine, f"no case for {rule.path} {rule.reason}: {rule.message}"
    assert len(CASES) == len(set(all_rules()))


def test_the_message_shows_the_values_that_contradict_each_other() -> None:
    [problem] = check.problems(resource({"compute.nodes": 2, "compute.gpus_per_node": 8}))
    assert "Given: compute.gpu_count = 8, compute.nodes = 2, compute.gpus_per_node = 8." in problem.message
    assert problem.remedy == "Correct one of the three, or leave one out."


OF_NEW_ADAPTERS: dict[str, Any] = {
    "r": 8, "alpha": 16, "target_modules": ["q_proj"], "layers_to_transform": [0], "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4}, "use_rslora": True, "use_dora": True, "init_lora_weights": "gaussian",
    "modules_to_save": ["lm_head"], "target_parameters": ["experts.down_proj"], "trainable_tokens": ["<s>"],
}  # fmt: skip


@pytest.mark.parametrize("key", OF_NEW_ADAPTERS)
def test_what_an_adapter_to_continue_from_has_is_no_key_beside_it(key: str) -> None:
    lora = {"training.lora.from": "pvc://models/one", f"training.lora.{key}": OF_NEW_ADAPTERS[key]}
    assert [problem.reason for problem in check.problems(resource(lora))] == ["AdapterContradiction"]
