"""bf16 means one thing: the same micro batches give the same numbers on any layout, near those of fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_api.runtime.choices import Engine
from trainer.parity_cases import ParityCase, Trace, cases, traces
from trainer.ranks import run_ranks, values

Traces = dict[str, Trace]
BF16 = {"precision": "bf16", "per_device": 1}
UNSYNCED = {**BF16, "synced": False, "steps": 1}
"""One step shows it in every gradient, and none yet in the loss."""
LAYOUTS = ((2, Engine.DDP), (2, Engine.FSDP2), (4, Engine.DDP), (4, Engine.FSDP2), (4, Engine.HSDP))
LOSS, MEAN = 2e-3, 3e-4
"""Largest relative difference of a loss, and of the losses on average: gradients are rounded after other sums."""
GRADIENT, TIED = 1e-5, 2e-3
"""Largest relative difference of a tensor's gradient. Of tied embeddings two bf16 parts are added, in one or two
numbers."""


@pytest.fixture(scope="module")
def alone() -> Traces:
    both = cases(Engine.SINGLE, **BF16) + cases(Engine.SINGLE, per_device=1)
    return dict(values(run_ranks(1, traces, both))[0])


@pytest.fixture(scope="module")
def spread() -> dict[int, Traces]:
    return {
        world: values(run_ranks(world, traces, [*cases(*kinds, **BF16), *cases(*kinds, **UNSYNCED)]))[0]
        for world, kinds in ((world, [e for w, e in LAYOUTS if w == world]) for world in (2, 4))
    }


def single(case: ParityCase) -> str:
    return str(replace(case, engine=Engine.SINGLE, synced=True))


@pytest.mark.parametrize(
    ("world", "case"),
    [
        pytest.param(world, case, id=f"{world} ranks {case}")
        for world, engine in LAYOUTS
        for case in cases(engine, **BF16)
    ],
)
def test_the_same_micro_batches_give_the_same_numbers(
    world: int, case: ParityCase, alone: Traces, spread: dict[int, Traces]
) -> None:
    one, many = alone[single(case)], spread[world][str(case)]
    assert one.losses[0] == many.losses[0]
    assert differences(case, one, many) == []


@pytest.mark.parametrize(
    ("world", "case"),
    [
        pytest.param(world, case, id=f"{world} ranks {case}")
        for world, engine in LAYOUTS
        for case in cases(engine, **UNSYNCED)
    ],
)
def test_ranks_that_keep_their_gradients_are_found_out(
    world: int, case: ParityCase, alone: Traces, spread: dict[int, Traces]
) -> None:
    one, many = alone[single(case)], spread[world][str(case)]
    assert differences(case, one, many) == [*one.gradients]


def differences(case: ParityCase, one: Trace, many: Trace) -> list[str]:
    """In what `many` is not the same run, as far as it went: the losses, their mean, gradients by name."""
    errors = [(b - a) / a for a, b in zip(one.losses, many.losses, strict=False)]
    found = {"loss": max(map(abs, errors)) / LOSS, "mean": abs(sum(errors) / len(errors)) / MEAN}
    for name, gradient in one.gradients.items():
        error = float((gradient - many.gradients[name]).norm() / gradient.norm())
        found[name] = error / (TIED if case.tied and "embed_tokens" in name else GRADIENT)
    return [name for name, error in found.items() if not error <= 1]


@pytest.mark.parametrize("case", cases(Engine.SINGLE, **BF16), ids=str)
def test_gradients_are_those_of_fp32_but_for_rounding(case: ParityCase, alone: Traces) -> None:
    exact, found = alone[str(replace(case, precision="fp32"))].gradients, alone[str(case)].gradients
    for name, gradient in exact.items():
        assert float((gradient - found[name]).norm() / gradient.norm()) <= 0.06, name
    whole, other = (torch.cat([kind[name].flatten() for name in exact]) for kind in (exact, found))
    assert float((whole - other).norm() / whole.norm()) <= 0.03
    assert float(whole @ other / (whole @ whole)) == pytest.approx(1, abs=0.015)
