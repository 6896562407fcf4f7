"""A run continues from its checkpoint with the same bits on the same layout, and with the same state on any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from finetune_api.runtime.choices import Engine
from trainer.ranks import run_ranks, values
from trainer.resume_layouts_work import PLANNED_STEPS, Part, ResumeCase, parts

STOP, STEPS = 2, 4
"""The second epoch begins after step 3."""
RELATIVE = 1e-5
"""Largest relative difference of a loss on another layout."""

SAME_LAYOUT = {
    4: [
        ResumeCase(Engine.DDP, precision="bf16"),
        ResumeCase(Engine.DDP, lora=True, precision="bf16"),
        ResumeCase(Engine.DDP),
        ResumeCase(Engine.HSDP, precision="bf16"),
        ResumeCase(Engine.HSDP, lora=True, precision="bf16"),
        ResumeCase(Engine.DDP, lora=True, quantised=True),
        ResumeCase(Engine.HSDP, lora=True),
        ResumeCase(Engine.DDP, lora=True, precision="bf16", eight_bits=True),
        ResumeCase(Engine.HSDP, precision="bf16", eight_bits=True),
        ResumeCase(Engine.HSDP, lora=True, whole=True, precision="bf16"),
        ResumeCase(Engine.DDP, lora=True, whole=True, quantised=True),
        ResumeCase(Engine.HSDP, lora=True, rows=True, precision="bf16"),
    ],
    2: [
        ResumeCase(Engine.FSDP2, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, quantised=True, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, dora=True, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, whole=True, quantised=True, precision="bf16"),
        ResumeCase(Engine.FSDP2, lora=True, rows=True, quantised=True, precision="bf16", eight_bits=True),
        ResumeCase(Engine.FSDP2),
        ResumeCase(Engine.FSDP2, eight_bits=True),
        ResumeCase(Engine.FSDP2, lora=True, precision="bf16", eight_bits=True),
    ],
}
"""By number of ranks. All have dropout."""
BY_TORCH = ResumeCase(Engine.DDP, torch_ddp=True)

Parts = dict[str, Part]


@dataclass(frozen=True)
class Chain:
    """A run whose first third is on four ranks, the second on two, and the last on one."""

    on_four: Engine
    on_two: Engine
    lora: bool
    eight_bits: bool = False

    @property
    def job(self) -> str:
        return f"{'lora' if self.lora else 'fft'}{' 8-bit moments' * self.eight_bits}"

    def __str__(self) -> str:
        return f"{self.job} {self.on_four} on 4 then {self.on_two} on 2"

    def case(self, world: int) -> ResumeCase:
        engine = {4: self.on_four, 2: self.on_two, 1: Engine.SINGLE}[world]
        return ResumeCase(engine, self.lora, dropout=0.0, eight_bits=self.eight_bits)


CHAINS = [
    Chain(Engine.DDP, Engine.DDP, lora=False),
    Chain(Engine.DDP, Engine.FSDP2, lora=True),
    Chain(Engine.FSDP2, Engine.FSDP2, lora=False),
    Chain(Engine.FSDP2, Engine.DDP, lora=True),
    Chain(Engine.HSDP, Engine.FSDP2, lora=False),
    Chain(Engine.HSDP, Engine.DDP, lora=True),
    Chain(Engine.FSDP2, Engine.FSDP2, lora=False, eight_bits=True),
    Chain(Engine.HSDP, Engine.DDP, lora=True, eight_bits=True),
]
THIRDS = {4: PLANNED_STEPS // 3, 2: PLANNED_STEPS * 2 // 3, 1: PLANNED_STEPS}
"""Steps that are done when the ranks end, by their number."""


@dataclass(frozen=True)
class Resumed:
    """A run without interruption, and the two parts of one with."""

    uninterrupted: Part
    first: Part
    second: Part


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Resumed]]:
    """All cases of a number of ranks, by their names; the first test that asks waits for them."""

    @cache
    def of(world: int) -> dict[str, Resumed]:
        folder = tmp_path_factory.mktemp(f"{world}-ranks")
        cases = {str(case): case for case in [*SAME_LAYOUT[world], *([BY_TORCH] if world == 4 else [])]}
        three = [
            on_ranks(world, cases, folder / "uninterrupted", STEPS),
            on_ranks(world, cases, folder / "resumed", STOP),
            on_ranks(world, cases, folder / "resumed", STEPS),
        ]
        return {name: Resumed(*(each[name] for each in three)) for name in cases}

    return of


def on_ranks(world: int, cases: dict[str, ResumeCase], folder: Path, until: int) -> Parts:
    """The next part of each case, in a process group of its own."""
    found: list[Parts] = values(run_ranks(world, parts, cases, folder, until))
    assert all(other == found[0] for other in found), "ranks report different numbers"
    return found[0]


@pytest.mark.parametrize(
    ("world", "name"),
    [pytest.param(w, str(c), id=f"{w} ranks {c}") for w, cases in SAME_LAYOUT.items() for c in cases],
)
def test_resumed_on_the_same_layout_a_run_has_the_bits_of_the_uninterrupted_one(
    world: int, name: str, resumed: Callable[[int], dict[str, Resumed]]
) -> None:
    run = resumed(world)[name]
    assert len(run.first.losses) == STOP
    assert run.second.began_with == run.first.ended_with
    assert run.first.losses + run.second.losses == run.uninterrupted.losses
    assert run.second.ended_with == run.uninterrupted.ended_with


def test_with_the_buckets_of_torch_a_resumed_run_has_other_bits(
    resumed: Callable[[int], dict[str, Resumed]],
) -> None:
    run = resumed(4)[str(BY_TORCH)]
    assert run.second.began_with == run.first.ended_with
    assert run.first.losses == run.uninterrupted.losses[:STOP]
    assert run.second.losses == pytest.approx(run.uninterrupted.losses[STOP:], rel=1e-4), "in the last bits only"
    assert run.second.losses != run.uninterrupted.losses[STOP:]
    assert run.second.ended_with != run.uninterrupted.ended_with


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """Each of the runs as a whole in one process."""
    cases = {chain.job: chain.case(1) for chain in CHAINS}
    return on_ranks(1, cases, tmp_path_factory.mktemp("alone"), PLANNED_STEPS)


@pytest.fixture(scope="module")
def thirds(tmp_path_factory: pytest.TempPathFactory) -> list[Parts]:
    folder = tmp_path_factory.mktemp("chains")
    return [on_ranks(world, {str(c): c.case(world) for c in CHAINS}, folder, done) for world, done in THIRDS.items()]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_resumed_on_fewer_ranks_a_run_has_the_same_state_and_the_losses_of_one_process(
    chain: Chain, thirds: list[Parts], alone: Parts
) -> None:
    first, second, third = (each[str(chain)] for each in thirds)
    assert second.began_with == first.ended_with
    assert third.began_with == second.ended_with
    losses = first.losses + second.losses + third.losses
    assert losses == pytest.approx(alone[chain.job].losses, rel=RELATIVE)
