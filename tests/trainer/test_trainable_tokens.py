"""Rows of tokens that are trained beside adapters: against PEFT's, the same on every layout, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune_api.runtime.choices import Engine, Method, Precision
from finetune_trainer import token_rows
from trainer import architectures, models, modules_to_save_work, qlora_work
from trainer.qlora_work import Job, Run, far
from trainer.ranks import run_ranks, values

LOSS = 1e-5
"""Largest difference of a loss, in nats."""
TOKENS = Job(method=Method.LORA, adapter="tokens")
QUANTISED = replace(TOKENS, method=Method.QLORA)
BF16 = replace(TOKENS, precision=Precision.BF16)
WITHOUT = Job(method=Method.LORA)
ALONE = [TOKENS, QUANTISED]
SPREAD = [replace(job, engine=engine) for job in ALONE for engine in (Engine.DDP, Engine.FSDP2)]
WORLDS = {
    1: [*ALONE, BF16, WITHOUT, *(replace(job, plain=True) for job in ALONE)],
    2: [*SPREAD, replace(BF16, engine=Engine.FSDP2), replace(TOKENS, engine=Engine.FSDP2, synced=False, steps=3)],
    4: [replace(TOKENS, engine=Engine.HSDP)],
}
"""Jobs by number of ranks."""
TIED_WORLDS = {1: [TOKENS, replace(TOKENS, plain=True)], 2: [replace(TOKENS, engine=Engine.FSDP2)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("base") / "model", layers=2)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("tied") / "model", tied=True, layers=2)


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(folder, WORLDS)


@pytest.fixture(scope="module")
def found_tied(tied: Path) -> dict[str, Run]:
    return qlora_work.on_ranks(tied, TIED_WORLDS)


def same_as_peft(found: dict[str, Run], job: Job) -> None:
    ours, plain = found[str(job)], found[str(replace(job, plain=True))]
    assert len(ours.losses) == qlora_work.STEPS
    assert far(ours.losses, plain.losses) <= (LOSS if job.method is Method.LORA else 1e-4)


@pytest.mark.parametrize("job", ALONE, ids=str)
def test_rows_of_peft_train_alike(found: dict[str, Run], job: Job) -> None:
    same_as_peft(found, job)


def test_tied_rows_of_peft_train_alike(found_tied: dict[str, Run]) -> None:
    same_as_peft(found_tied, TOKENS)


def test_they_are_trained(found: dict[str, Run]) -> None:
    assert found[str(TOKENS)].losses[0] == found[str(WITHOUT)].losses[0]
    assert far(found[str(TOKENS)].losses, found[str(WITHOUT)].losses) > 10 * LOSS


@pytest.mark.parametrize("job", [*SPREAD, *WORLDS[4]], ids=str)
def test_every_layout_trains_alike(found: dict[str, Run], job: Job) -> None:
    qlora_work.require_same_as_alone(found, job, LOSS)


def test_two_ranks_train_tied_rows_alike(found_tied: dict[str, Run]) -> None:
    qlora_work.require_same_as_alone(found_tied, TIED_WORLDS[2][0], LOSS)


def test_in_bf16_ranks_train_alike_to_their_roundings(found: dict[str, Run]) -> None:
    run, alone, exact = found[str(replace(BF16, engine=Engine.FSDP2))], found[str(BF16)], found[str(TOKENS)]
    assert run.evaluations[0] == alone.evaluations[0], "the forward pass has other bits"
    assert far(run.losses, alone.losses) <= 2e-3 * max(alone.losses)
    assert far(run.losses, exact.losses) <= 0.02


def test_without_sums_of_gradients_it_is_another(found: dict[str, Run]) -> None:
    assert far(found[str(WORLDS[2][-1])].losses, found[str(TOKENS)].losses[:3]) > 10 * LOSS


@pytest.mark.parametrize("job", ALONE, ids=str)
@pytest.mark.parametrize("base", ["folder", "tied"])
def test_plain_peft_loads_the_result(request: pytest.FixtureRequest, tmp_path: Path, base: str, job: Job) -> None:
    at = request.getfixturevalue(base)
    [(ours, plain)] = values(run_ranks(1, qlora_work.published, at, tmp_path, job))
    assert float((ours - plain).norm()) <= 1e-6 * float(ours.norm())


def test_an_adapter_of_every_architecture_is_loaded_by_peft(tmp_path: Path) -> None:
    [far_off] = values(run_ranks(1, modules_to_save_work.far_from_peft, tmp_path, {"token_ids": (3, 9, 40)}))
    assert len(far_off) == len(architectures.ALL)
    assert max(far_off.values()) <= 1e-5, far_off


def test_rows_take_the_places_of_those_of_their_tokens() -> None:
    rows = token_rows.TokenRows([5, 2], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tokens, others = torch.tensor([[2, 0], [5, 2]]), torch.full((2, 2, 2), 9.0)
    assert rows.embedded(tokens, others, None).tolist() == [[[3, 4], [9, 9]], [[1, 2], [3, 4]]]
    for scale in (torch.tensor(2.0), 2.0):  # as Gemma has it, and as XGLM
        assert rows.embedded(tokens, others, scale)[0].tolist() == [[6, 8], [9, 9]]
    assert rows.logits(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 6)).tolist() == [[0, 0, 7, 0, 0, 3]]
