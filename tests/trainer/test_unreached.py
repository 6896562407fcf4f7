"""Parameters that the loss does not reach: zero gradients on every rank alike, and a sentence that names them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from finetune_trainer.loop import StepResult
from finetune_trainer.unreached import STEPS, Unreached
from trainer import unreached_work as work
from trainer.ranks import run_ranks, values

ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "ddp": (2, {"engine": "ddp"}),
    "fsdp2": (2, {"engine": "fsdp2"}),
    "fsdp2 in bf16": (2, {"engine": "fsdp2", "precision": "bf16"}),
}
NEVER = "model.layers.*.never, model.layers.*.never.bias"


@pytest.fixture(scope="module")
def alone() -> list[StepResult]:
    found: list[StepResult] = values(run_ranks(1, work.train, {}, STEPS + 1))[0][0]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_what_only_some_rows_use_trains_alike_on_every_layout(engine: str, alone: list[StepResult]) -> None:
    world, changes = ENGINES[engine]
    (found, said), *others = values(run_ranks(world, work.train, changes, STEPS + 1))
    close = 2e-2 if "precision" in changes else 1e-4
    assert [step.loss for step in found] == pytest.approx([step.loss for step in alone], rel=close)
    assert [step.grad_norm for step in found] == pytest.approx([step.grad_norm for step in alone], rel=close)
    assert said == [
        f"The loss does not depend on {NEVER}: no gradient in 3 steps, so nothing but weight decay changes them."
    ]
    assert [messages for _, messages in others] == [[]] * (world - 1), "one rank speaks"


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        pytest.param([0, 0, 0], True, id="never"),
        pytest.param([0, 0, 1], False, id="in the last step"),
        pytest.param([1, 0, 0], False, id="in the first step"),
        pytest.param([0, 0], False, id="not yet"),
        pytest.param([0, None, 0, 1], False, id="a skipped step is none"),
        pytest.param([0, None, 0, 0], True, id="after a skipped step"),
    ],
)
def test_a_gradient_of_zero_is_said_after_three_steps_with_an_update(
    steps: list[int | None], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    unreached = Unreached(["a.0.weight", "b"], speaks=True)
    with caplog.at_level(logging.WARNING):
        for step in steps:
            gradients = {"a.0.weight": torch.full((2,), float(step or 0)), "b": torch.ones(2)}
            unreached.after_step(unreached.reached(gradients).tolist(), skipped=step is None)
    assert [record.message.partition(":")[0] for record in caplog.records] == (
        ["The loss does not depend on a.0"] if said else []
    )
