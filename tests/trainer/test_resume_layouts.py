"""A run continues from its checkpoint with the same bits on the same layout, and with the same state on any other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from finetune_api.runtime.choices import Engine
from trainer.ranks import run_ranks, values
from trainer.resume_layouts_work import PLANNED_STEPS, Part, ResumeCase, parts

STOP, STEPS = 3, 8
"""The second epoch begins after step 4 and the third after step 8."""
RELATIVE = 1e-5
"""Largest relative difference of a loss on another layout."""

SAME_LAYOUT = {
    4: [
        ResumeCase(Engine.DDP, precision="bf16"),
        ResumeCase(Engine.DDP, lora=True, precision="bf16"),
        ResumeCase(Engine.DDP),
        ResumeCase(Engine.HSDP, precision="bf16"),
        ResumeCase(Engine.HSDP, lora=True, precision="bf16"),
        ResumeCase(Engine.HSDP, lora=True),
    ],
    2: [
        ResumeCase(Engine.FSDP2, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, precision="bf16"),
        ResumeCase(Engine.FSDP2),
    ],
}
"""By number of ranks. All have dropout."""
BY_TORCH = ResumeCase(Engine.DDP, torch_ddp=True)

Parts = dict[str, Part]


@dataclass(frozen=True)
class Resumed:
    """A run without interruption, and the two parts of one with."""

    uninterrupted: Part
    first: Part
    second: Part


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Resumed]:
    found = {}
    for world, wanted in SAME_LAYOUT.items():
        folder = tmp_path_factory.mktemp(f"{world}-ranks")
        cases = {str(case): case for case in [*wanted, *([BY_TORCH] if world == 4 else [])]}
        three = [
            on_ranks(world, cases, folder / "uninterrupted", STEPS),
            on_ranks(world, cases, folder / "resumed", STOP),
            on_ranks(world, cases, folder / "resumed", STEPS),
        ]
        found |= {name: Resumed(*(each[name] for each in three)) for name in cases}
    return found


def on_ranks(world: int, cases: dict[str, ResumeCase], folder: Path, until: int) -> Parts:
    """The next part of each case, in a process group of its own."""
    found: list[Parts] = values(run_ranks(world, parts, cases, folder, until))
    assert all(other == found[0] for other in found), "ranks report different numbers"
    return found[0]


@pytest.mark.parametrize(
    "name", [pytest.param(str(c), id=f"{w} ranks {c}") for w, cases in SAME_LAYOUT.items() for c in cases]
)
def test_resumed_on_the_same_layout_a_run_has_the_bits_of_the_uninterrupted_one(
    name: str, resumed: dict[str, Resumed]
) -> None:
    run = resumed[name]
    assert len(run.first.losses) == STOP
    assert run.second.began_with == run.first.ended_with
    assert run.first.losses + run.second.losses == run.uninterrupted.losses
    assert run.second.ended_with == run.uninterrupted.ended_with


def test_with_the_buckets_of_torch_a_resumed_run_has_other_bits(resumed: dict[str, Resumed]) -> None:
    run = resumed[str(BY_TORCH)]
    assert run.second.began_with == run.first.ended_with
    assert run.first.losses == run.uninterrupted.losses[:STOP]
    assert run.second.losses == pytest.approx(run.uninterrupted.losses[STOP:], rel=1e-4), "in the last bits only"
    assert run.second.losses != run.uninterrupted.losses[STOP:]
    assert run.second.ended_with != run.uninterrupted.ended_with
