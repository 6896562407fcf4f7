"""Checkpoints are written while training goes on: what they hold, in which order, and how a failure ends the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import CheckpointRecord, ProgressRecord
from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import checkpoint, snapshot
from finetune_trainer.errors import StorageFailed
from trainer import background_work as work
from trainer import checkpoint_work, trainer_work
from trainer.models import dataset, lora, model_folder, run_config
from trainer.ranks import run_ranks, values

STEPS = 12
TWO_RANKS = {"nodes": 1, "processes_per_node": 2, "data_parallel": 2, "tensor_parallel": 1, "pipeline_parallel": 1}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    model_folder(folder / "model")
    dataset(folder / "rows.jsonl")
    return folder


@pytest.fixture
def config(inputs: Path, tmp_path: Path) -> RunConfig:
    """A checkpoint every four steps, and a record of every step."""
    return settings(inputs, tmp_path)


def settings(inputs: Path, folder: Path, **changes: Any) -> RunConfig:
    return run_config(
        inputs / "model", inputs / "rows.jsonl", folder / "out",
        checkpointing={"every_steps": 4, "keep": 9}, log_every_steps=1,
        schedule={"name": "constant", "warmup_ratio": 0.0, "epochs": 9, "max_steps": STEPS}, **changes,
    )  # fmt: skip


def test_a_snapshot_stays_as_it_is_when_training_goes_on(tmp_path: Path) -> None:
    state = checkpoint_work.tensors(1)
    taken = snapshot.take(state, {"step": 1})
    for tensor in (*state["parameters"].values(), *state["moments"].values(), state["step"]):
        tensor.zero_()
    checkpoint.save(tmp_path, 1, taken, keep=1, protect=set())
    assert checkpoint_work.same(
        checkpoint_work.load(tmp_path, 1) | {"step": torch.tensor(1.0)}, checkpoint_work.tensors(1)
    )


def test_training_goes_on_while_a_checkpoint_is_written(config: RunConfig) -> None:
    """The save of step 4 ends when step 7 is done: a run that waited for it would never come there."""
    values(run_ranks(1, work.run_held, config, 4, 7))
    records = trainer_work.records(Path(config.output))
    order = [r.step for r in records if isinstance(r, ProgressRecord | CheckpointRecord)]
    assert order.index(7) < len(order) - 1 - order[::-1].index(4), "the checkpoint was there after step 7"
    saved = {r.step: r for r in records if isinstance(r, CheckpointRecord)}
    assert sorted(saved) == [4, 8, 12]
    assert saved[4].blocked_seconds < saved[4].seconds / 2


@pytest.mark.parametrize("engine", ["single", "fsdp2"])
def test_a_checkpoint_holds_its_own_step(inputs: Path, tmp_path: Path, engine: str) -> None:
    """Written while training is at step 7, it has the bytes of the last checkpoint of a run of four steps."""
    layout: dict[str, Any] = {"engine": engine, "method": "lora", "lora": lora(dropout=0.1)}
    if engine == "fsdp2":
        layout |= {"mesh": TWO_RANKS, "batch": {"per_device": 1, "accumulation": 1}}
    ranks = 2 if engine == "fsdp2" else 1
    long, short = (settings(inputs, tmp_path / name, **layout) for name in ("long", "short"))
    short = short.model_copy(update={"schedule": short.schedule.model_copy(update={"max_steps": 4})})
    for each in (long, short):
        Path(each.output).parent.mkdir()
    values(run_ranks(ranks, work.run_held, long, 4, 7))
    values(run_ranks(ranks, work.run_held, short, 0, 0))
    written, expected = (Path(each.output) / "checkpoints" / "step-00000004" for each in (long, short))
    names = sorted(path.name for path in expected.iterdir())
    assert len(names) == 3 + 2 * ranks
    assert [name for name in names if (written / name).read_bytes() != (expected / name).read_bytes()] == []


def test_a_failed_step_leaves_the_save_that_is_under_way_the_time_to_end(config: RunConfig) -> None:
    [ended] = run_ranks(1, work.run_failing_while_saving, config, 4, 6)
    assert "out of memory" in str(ended.error)
    assert checkpoint.latest(Path(config.output)) == 4


def test_one_save_ends_before_the_next_begins(config: RunConfig) -> None:
    [folders] = values(run_ranks(1, work.run_logged, config))
    order = [folder for folder in folders if "step" in folder]
    assert order == sorted(order)
    assert len(set(order)) == STEPS / 4


def test_a_stop_while_a_checkpoint_is_written_ends_both_saves(config: RunConfig) -> None:
    [report] = values(run_ranks(1, work.run_stopped_while_saving, config, 4, 6))
    assert report.exit_code == Exit.STOPPED
    assert report.step < STEPS
    assert checkpoint.is_valid(Path(config.output), 4)
    assert checkpoint.latest(Path(config.output)) == report.step


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_a_save_that_fails_on_one_rank_ends_the_run_on_every_rank(inputs: Path, tmp_path: Path, engine: str) -> None:
    config = settings(inputs, tmp_path, engine=engine, mesh=TWO_RANKS, batch={"per_device": 1, "accumulation": 1})
    for ended in run_ranks(2, work.run_full, config, 1):
        assert isinstance(ended.error, StorageFailed)
        assert "rank 1: cannot write" in str(ended.error)
        assert "No space left on device" in str(ended.error)
    steps = [r.step for r in trainer_work.records(Path(config.output)) if isinstance(r, ProgressRecord)]
    assert max(steps) <= 8, "at the latest where the next save would begin"


def test_training_stops_after_a_save_has_failed(config: RunConfig) -> None:
    [ended] = run_ranks(1, work.stops_after_a_failed_save, config)
    assert isinstance(ended.error, StorageFailed)
    assert str(ended.error) == "no space left"
