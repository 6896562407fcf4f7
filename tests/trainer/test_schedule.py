"""The learning rate over a run."""

from __future__ import annotations

import pytest

from finetune_api.runtime.run_config import Schedule
from finetune_trainer.schedule import factor


def factors(name: str, warmup: float, total: int) -> list[float]:
    schedule = Schedule.model_validate({"name": name, "warmup_ratio": warmup, "epochs": 1, "max_steps": None})
    return [round(factor(schedule, step, total), 6) for step in range(total)]


@pytest.mark.parametrize(
    ("name", "warmup", "total", "expected"),
    [
        pytest.param("constant", 0.0, 3, [1, 1, 1], id="constant stays"),
        pytest.param("constant", 0.3, 4, [0.5, 1, 1, 1], id="warmup steps are rounded up, and end at the peak"),
        pytest.param("constant", 0.0001, 3, [1, 1, 1], id="a warmup of one step is at the peak at once"),
        pytest.param("constant", 1.0, 4, [0.25, 0.5, 0.75, 1], id="warmup may take the whole run"),
        pytest.param(
            "linear", 0.0, 4, [1, 0.75, 0.5, 0.25], id="linear falls evenly and never wastes a step at zero"
        ),
        pytest.param("linear", 0.4, 5, [0.5, 1, 1, 0.666667, 0.333333], id="linear decays over what warmup leaves"),
        pytest.param("cosine", 0.0, 4, [1, 0.853553, 0.5, 0.146447], id="cosine falls as half a cosine wave"),
        pytest.param("cosine", 0.0, 1, [1], id="a run of one step is trained at the peak"),
    ],
)
def test_factors(name: str, warmup: float, total: int, expected: list[float]) -> None:
    assert factors(name, warmup, total) == expected
