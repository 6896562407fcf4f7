"""Kernels and random numbers of a rank."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from finetune_api.runtime.run_config import RunConfig
from trainer import environment_work as work
from trainer import models
from trainer.ranks import run_ranks, values

DROPOUT = {"method": "lora", "lora": models.lora(dropout=0.1)}
ROWS_PER_STEP = 4


@pytest.mark.parametrize("program", ["worker", "merging"])
def test_a_program_starts_without_bitsandbytes_and_deepspeed_and_can_import_bitsandbytes(program: str) -> None:
    absent = "assert not {'bitsandbytes', 'deepspeed'} & sys.modules.keys()"
    code = f"import sys, finetune_trainer.{program}; {absent}; import bitsandbytes"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and rows that are all alike: ranks with the same random numbers then use as many of them."""
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model")
    models.dataset(folder / "row.jsonl", 1)
    (folder / "rows.jsonl").write_text((folder / "row.jsonl").read_text() * 8)
    return folder


def config(inputs: Path, tmp_path: Path, **changes: Any) -> RunConfig:
    return models.run_config(inputs / "model", inputs / "rows.jsonl", tmp_path / "out", **changes)


def on_ranks(world: int, data_parallel: int) -> dict[str, Any]:
    return {
        "engine": "ddp", "mesh__processes_per_node": world, "mesh__data_parallel": data_parallel,
        "mesh__tensor_parallel": world // data_parallel,
        "batch": {"per_device": 1, "accumulation": ROWS_PER_STEP // data_parallel},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ("highest", False, None), id="neither"),
        pytest.param({"tf32": True}, ("high", False, None), id="tf32"),
        pytest.param({"deterministic": True}, ("highest", True, ":4096:8"), id="deterministic"),
    ],
)
def test_a_rank_uses_the_kernels_that_the_job_asks_for(
    tmp_path: Path, inputs: Path, changes: dict[str, Any], expected: tuple[str, bool, str | None]
) -> None:
    settings = config(inputs, tmp_path, schedule__max_steps=1, **changes)
    assert values(run_ranks(1, work.kernels, settings, tmp_path)) == [expected]


def test_data_ranks_draw_other_masks_resumed_or_not(tmp_path: Path, inputs: Path) -> None:
    """Also those that a resumed run has more of."""
    begun = values(run_ranks(2, work.draws, config(inputs, tmp_path, **DROPOUT, **on_ranks(2, 2)), 2))
    resumed = values(run_ranks(4, work.draws, config(inputs, tmp_path, **DROPOUT, **on_ranks(4, 4)), 0))
    assert [len(drawn) for drawn in begun + resumed] == [2, 2, 2, 2, 2, 2]
    for one, other in [*combinations(begun, 2), *combinations(resumed, 2)]:
        assert all(a != b for a, b in zip(one, other, strict=True))


def test_ranks_that_train_on_the_same_rows_draw_the_same_masks(tmp_path: Path, inputs: Path) -> None:
    settings = config(inputs, tmp_path, **DROPOUT, **on_ranks(4, 2))
    drawn = values(run_ranks(4, work.first_draw, settings))
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
