"""Number formats besides bf16 with fp32 masters: fp16 with a loss scale, weights in bf16 only, nearest rounding."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.runtime.choices import WeightFormat
from finetune_trainer.engines import StepOutcome
from finetune_trainer.master import MasterWeights
from finetune_trainer.rounding import NearestRounding
from trainer.format_work import FFT, LORA, FormatRun, ends_after, train
from trainer.ranks import run_ranks, values

FP16 = {"precision": "fp16"}
ONLY_BF16 = {"precision": "bf16", "weights": "bf16"}
NEAREST = {"precision": "bf16", "rounding": "nearest"}
SKIPPING = 2.0**19
"""A scale with which the gradients of the first steps overflow, and those of the later ones do not."""
FORMATS: dict[str, tuple[dict[str, Any], float | None]] = {
    "fp16 with an overflow": (FP16, SKIPPING),
    "weights in bf16 only": (ONLY_BF16, None),
    "nearest rounding": (NEAREST, None),
}
"""What changes in the configuration, and the first scale of the loss."""
ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "single": (1, {}),
    "ddp": (2, {"engine": "ddp"}),
    "fsdp2": (2, {"engine": "fsdp2"}),
    "hsdp": (4, {"engine": "hsdp", "mesh__nodes": 2, "mesh__processes_per_node": 2}),
}
"""The ranks, and what changes in the configuration."""


def alone(changes: Mapping[str, Any], scale: float | None = None, stop_after: int | None = None) -> FormatRun:
    found: FormatRun = values(run_ranks(1, train, changes, scale, stop_after))[0]
    return found


@pytest.fixture(scope="module")
def exact() -> dict[str, FormatRun]:
    return {"fft": alone(FFT), "lora": alone(LORA)}


def moments(run: FormatRun) -> float:
    """Norm of all first moments of AdamW, after the last step."""
    return float(torch.cat([moment.flatten() for moment in run.state["exp_avg"].values()]).norm())


@pytest.mark.parametrize(
    ("method", "changes", "far"),
    [
        pytest.param("fft", FP16, 1e-3, id="fp16, full finetuning"),
        pytest.param("lora", LORA | FP16, 1e-3, id="fp16, LoRA"),
        pytest.param("fft", ONLY_BF16, 5e-3, id="weights in bf16 only"),
        pytest.param("fft", NEAREST, 5e-3, id="nearest rounding"),
    ],
)
def test_losses_are_near_those_of_fp32(
    method: str, changes: dict[str, Any], far: float, exact: dict[str, FormatRun]
) -> None:
    found = alone(changes)
    assert found.losses == pytest.approx(exact[method].losses, abs=far)
    assert found.losses != exact[method].losses
    assert moments(found) == pytest.approx(moments(exact[method]), rel=0.02), "no scale is left in them"


@pytest.mark.parametrize("engine", ["single", "fsdp2"])
@pytest.mark.parametrize(("rounding", "nearest"), [("nearest", True), ("stochastic", False)])
def test_the_model_computes_with_the_nearest_weights_if_the_job_asks_for_them(
    engine: str, rounding: str, nearest: bool
) -> None:
    world, layout = ENGINES[engine]
    changes = NEAREST | layout | {"rounding": rounding, "schedule__max_steps": 1}
    state = values(run_ranks(world, train, changes))[0].state
    same = {name: torch.equal(state["computing"][name], w.bfloat16()) for name, w in state["parameters"].items()}
    assert set(same.values()) == {nearest}


def test_weights_that_are_kept_in_bf16_have_no_other_copy() -> None:
    state = alone(ONLY_BF16).state
    assert {weight.dtype for weight in state["parameters"].values()} == {torch.bfloat16}
    assert {moment.dtype for moment in state["exp_avg"].values()} == {torch.float32}


@pytest.mark.parametrize(("kept", "stays"), [(WeightFormat.FP32, True), (WeightFormat.BF16, False)])
def test_fp32_weights_are_freed_where_only_bf16_is_kept(kept: WeightFormat, stays: bool) -> None:
    separate = {"w": torch.ones(4)}
    seen = weakref.ref(separate["w"])
    weights = MasterWeights({"w": nn.Parameter(torch.empty(4).bfloat16())}, separate, NearestRounding(), kept)
    del separate
    gc.collect()
    assert (seen() is not None) == stays, weights.local


def test_small_updates_move_weights_that_are_kept_in_bf16() -> None:
    """A tenth of a step of bf16's grid: rounded to the nearest, every weight would stay as it is."""
    slow = ONLY_BF16 | {"optimizer__learning_rate": 1e-5}
    first, *_, last = alone(slow).weights
    moved = torch.cat([(first[name] != last[name]).flatten() for name in first]).float().mean()
    assert 0.1 < float(moved) < 0.5


def test_an_overflow_skips_the_step_halves_the_scale_and_is_counted() -> None:
    found = alone(FP16, SKIPPING)
    counts = [result.skipped_steps for result in found.results]
    assert counts[0] == 1 < counts[-1] < len(counts)
    assert [result.loss_scale for result in found.results[:2]] == [SKIPPING, SKIPPING / 2]
    skipped = {i for i in range(1, len(counts)) if counts[i] > counts[i - 1]}
    for i, (before, after) in enumerate(zip(found.weights, found.weights[1:], strict=False), start=1):
        assert all(torch.equal(before[name], after[name]) for name in before) == (i in skipped)


def test_an_update_after_skipped_steps_is_a_first_update() -> None:
    """AdamW's bias correction counts updates, not steps."""
    found = alone(FP16, SKIPPING)
    first = next(i for i, result in enumerate(found.results) if i and result.skipped_steps == i)
    change = found.weights[first]["model.norm.weight"] - found.weights[first - 1]["model.norm.weight"]
    assert float(change.abs().median()) == pytest.approx(1e-3, rel=0.05), "the learning rate, times the sign"


@pytest.mark.parametrize(
    ("nll", "norm", "scale", "ends"),
    [
        pytest.param(1.0, math.inf, None, True, id="gradients that overflow without a scale"),
        pytest.param(1.0, math.inf, 1.0, True, id="gradients that overflow with the smallest scale"),
        pytest.param(math.nan, math.nan, 2.0, True, id="a loss that is not finite"),
        pytest.param(1.0, math.inf, 2.0, False, id="gradients that a smaller scale may help"),
    ],
)
def test_what_no_scale_can_help_ends_the_run(nll: float, norm: float, scale: float | None, ends: bool) -> None:
    assert ends_after(StepOutcome(nll, norm, skipped=True, stop=False, loss_scale=scale)) == ends


@pytest.mark.parametrize(
    ("engine", "number_format"),
    [*product(("single", "ddp", "fsdp2"), FORMATS), ("hsdp", "weights in bf16 only")],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(engine: str, number_format: str) -> None:
    world, layout = ENGINES[engine]
    changes, scale = FORMATS[number_format]
    whole, resumed = (values(run_ranks(world, train, changes | layout, scale, stop))[0] for stop in (None, 2))
    assert resumed.losses == whole.losses
    for kind, tensors in whole.state.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, resumed.state[kind][name]), f"{kind} of {name}"
