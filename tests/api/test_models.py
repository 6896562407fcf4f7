"""Jobs and status survive JSON, and no number that JSON lacks gets into a status."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from api.mutations import BASES
from finetune_api.resource.key_table import Fate
from finetune_api.resource.keys import keys
from finetune_api.resource.status import (
    Condition,
    ConditionStatus,
    DatasetStatus,
    Phase,
    ProgressStatus,
    ResultStatus,
    Status,
)
from finetune_api.resource.v1alpha1 import Spec
from finetune_api.validation.rules import all_rules

STATUS = Status(
    observedGeneration=3,
    phase=Phase.TRAINING,
    conditions=(
        Condition(type="Ready", status=ConditionStatus.FALSE, reason="Training", message="Step 5 of 10.",
                  lastTransitionTime="2026-01-02T03:04:05Z", observedGeneration=3),
    ),
    run=1,
    restarts=0,
    dataset=DatasetStatus(rows=10, used=9, refused=1, tokens=1000, maskedFraction=0.5),
    progress=ProgressStatus(step=5, totalSteps=10, epoch=0.5, percent=50, loss=1.25, etaSeconds=60),
    result=ResultStatus(uri="pvc://models/out", metrics={"eval_loss": 1.0}, best=5),
    informational=("spec.tags",),
    startTime="2026-01-02T03:04:05Z",
)  # fmt: skip


@pytest.mark.parametrize("spec", BASES, ids="+".join)
def test_a_spec_survives_json(spec: dict[str, Any]) -> None:
    first = Spec.model_validate_json(json.dumps(spec))
    text = first.model_dump_json(by_alias=True, exclude_none=True)
    again = Spec.model_validate_json(text)
    assert again == first
    assert again.model_dump_json(by_alias=True, exclude_none=True) == text


def test_a_status_survives_json() -> None:
    assert Status.model_validate_json(STATUS.model_dump_json(exclude_none=True)) == STATUS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_status_never_holds_a_number_that_json_lacks(value: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        ProgressStatus(loss=value)
    with pytest.raises(ValidationError, match="finite number"):
        ResultStatus(metrics={"loss": value})
    with pytest.raises(ValidationError, match="finite number"):
        DatasetStatus(maskedFraction=value)


def test_every_key_has_a_fate_and_every_other_fate_than_honoured_a_reason() -> None:
    """keys() itself fails on a key that declares none."""
    found = list(keys(Spec))
    assert len({key.path for key in found}) == len(found)
    assert [key.path for key in found if (key.fate is Fate.HONOURED) != (key.because == "")] == []


def test_every_refused_key_has_a_rule() -> None:
    refused = {key.path for key in keys(Spec) if key.fate is Fate.REFUSED}
    assert refused == {f"spec.{rule.path}" for rule in all_rules() if rule.reason == "RefusedKey"}
    assert refused


def test_the_judge_starts_without_what_only_the_generators_need() -> None:
    """`finetune validate` answers at once only if nothing of this is loaded."""
    script = "import sys, finetune_plan.resolve; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "finetune_api.validation.rules" in loaded
    unwanted = {"pydantic", "yaml", "difflib", "argparse", "tomllib", "finetune_api.codegen"}
    assert not loaded & unwanted
