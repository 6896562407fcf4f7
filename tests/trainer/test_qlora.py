"""Adapters on a base in four or eight bits: the same job on every layout, and that of PEFT and bitsandbytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finetune_api.runtime.choices import Engine
from trainer import models, qlora_work
from trainer.qlora_work import LONGEST, SAME, Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss of ours, in nats."""
PLAIN = 1e-4
"""Of one with PEFT's and bitsandbytes' layers."""
FEW = 8
FORMATS = [Job(format=name, double=double, steps=FEW) for name in ("nf4", "fp4") for double in (True, False)]
INTEGERS = Job(format="int8", double=False, steps=FEW)
FORMATS += [INTEGERS]
WHOLE = Job()
SPREAD = [Job(engine) for engine in (Engine.DDP, Engine.FSDP2)]
SPREAD_INTEGERS = [replace(INTEGERS, engine=job.engine) for job in SPREAD]
HYBRID = Job(Engine.HSDP)
ZERO = [Job(Engine.ZERO1), Job(Engine.ZERO2), Job(Engine.ZERO3), replace(INTEGERS, engine=Engine.ZERO3)]
UNSYNCED = [replace(job, synced=False, steps=3) for job in SPREAD]
WORLDS = {
    1: [WHOLE, *FORMATS, *(replace(job, plain=True) for job in FORMATS)],
    2: [*SPREAD, *UNSYNCED, *SPREAD_INTEGERS, *ZERO],
    4: [HYBRID],
}
"""Jobs by number of ranks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("base") / "model", layers=2)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


@pytest.mark.parametrize("job", [*SPREAD, HYBRID, *SPREAD_INTEGERS, *ZERO], ids=str)
def test_a_quantised_base_is_the_same_on_every_layout(found: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found, job, LOSS)


@pytest.mark.parametrize("job", UNSYNCED, ids=str)
def test_without_sums_of_gradients_it_is_another(found: dict[str, Run], job: Job) -> None:
    assert far(found[str(job)].losses, found[str(WHOLE)].losses[:3]) > 10 * LOSS


@pytest.mark.parametrize("job", FORMATS, ids=str)
def test_layers_of_peft_and_bitsandbytes_train_alike(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert far(ours.losses, plain.losses) <= PLAIN
    assert far(ours.evaluations, plain.evaluations) <= PLAIN * len(SAME) * LONGEST


def test_formats_differ(found: dict[str, Run]) -> None:
    assert len({found[str(job)].evaluations[0] for job in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("job", [WHOLE, INTEGERS], ids=str)
def test_plain_peft_loads_the_adapter_onto_a_base_with_the_same_numbers(
    tmp_path: Path, folder: Path, job: Job
) -> None:
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, folder, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())
