"""Stopped, killed, restarted: the run resumes with identical results, or is refused with the reason.

What is stopped, continued and refused is the command `python -m finetune_trainer`, as a pod starts it. The runs
it is compared with, and the walk over the points at which a save can be killed, fork from one process: the
command spends seconds on imports.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import CONFIG_ENV
from finetune_api.runtime.report import ProgressRecord, ResumeRecord, parse
from finetune_api.runtime.run_config import RunConfig
from trainer import resume_work as work
from trainer.models import dataset, llama, lora, model_folder, run_config
from trainer.ranks import run_ranks, values

STEPS = 24
TWO_RANKS = {"nodes": 1, "processes_per_node": 2, "data_parallel": 2, "tensor_parallel": 1, "pipeline_parallel": 1}
LAYOUTS: dict[str, dict[str, Any]] = {
    "ddp": {"engine": "ddp", "mesh": TWO_RANKS, "batch": {"per_device": 1, "accumulation": 2}},
    "fsdp2": {"engine": "fsdp2", "mesh": TWO_RANKS, "batch": {"per_device": 1, "accumulation": 2}},
    "single": {"engine": "single", "batch": {"per_device": 2, "accumulation": 2}},
}


@dataclass(frozen=True)
class CommandResult:
    code: int
    lines: list[str]
    errors: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout in its attention, and rows."""
    folder = tmp_path_factory.mktemp("inputs")
    model_folder(folder / "model")
    model = llama()
    model.config.attention_dropout = 0.1
    model.config.save_pretrained(folder / "model")
    dataset(folder / "rows.jsonl")
    return folder


def config(inputs: Path, output: Path, engine: str, **changes: Any) -> RunConfig:
    """Adapters with dropout, shuffled rows, a checkpoint every ten steps."""
    common = {
        "method": "lora", "lora": lora(dropout=0.1), "checkpointing": {"every_steps": 10, "keep": 2},
        "schedule": {"name": "cosine", "warmup_ratio": 0.1, "epochs": 4, "max_steps": None},
    }  # fmt: skip
    return run_config(inputs / "model", inputs / "rows.jsonl", output, **(common | LAYOUTS[engine] | changes))


@contextmanager
def started(settings: RunConfig, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The trainer's own command; ended when the test is over, also after a failure."""
    path = folder / "run-config.json"
    path.write_text(settings.model_dump_json())
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer"],
            env={**os.environ, CONFIG_ENV: str(path), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            output(process).close()


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def run(settings: RunConfig, folder: Path, *, stop_after: int | None = None) -> CommandResult:
    """One run to its end; with `stop_after`, it gets a SIGTERM once it has reported that step."""
    lines = []
    with started(settings, folder) as process:
        for line in output(process):
            lines.append(line)
            record = parse(line)
            if isinstance(record, ProgressRecord) and record.step == stop_after:
                process.send_signal(signal.SIGTERM)
        process.wait()
    return CommandResult(process.returncode, lines, (folder / "errors.txt").read_text())


def losses(lines: list[str]) -> dict[int, float | None]:
    return {r.step: r.loss for line in lines if isinstance(r := parse(line), ProgressRecord)}


@dataclass(frozen=True)
class Uninterrupted:
    """An uninterrupted run."""

    engine: str
    output: Path
    losses: dict[int, float | None]


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def uninterrupted(
    request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Uninterrupted:
    folder = tmp_path_factory.mktemp(request.param)
    values(run_ranks(1, work.run_uninterrupted, config(inputs, folder / "out", request.param), folder))
    return Uninterrupted(request.param, folder / "out", losses(recorded(folder / "out")))


def test_stopped_and_started_again_losses_and_weights_are_those_of_the_uninterrupted_run(
    tmp_path: Path, inputs: Path, uninterrupted: Uninterrupted
) -> None:
    settings = config(inputs, tmp_path / "out", uninterrupted.engine)
    first = run(settings, tmp_path, stop_after=3)
    assert first.code == Exit.STOPPED, first.errors
    stopped = max(losses(first.lines))
    assert 3 <= stopped < STEPS, "it was stopped in the middle"
    assert work.report(tmp_path / "out").step == stopped

    second = run(settings, tmp_path)
    assert second.code == Exit.OK, second.errors
    assert [r.step for line in second.lines if isinstance(r := parse(line), ResumeRecord)] == [stopped]
    remaining = losses(second.lines)
    assert list(remaining) == list(range(stopped + 1, STEPS + 1)), "no step is done twice and none is left out"
    assert losses(first.lines) | remaining == uninterrupted.losses, "bit by bit"
    assert work.weights(tmp_path / "out") == work.weights(uninterrupted.output)


@pytest.mark.parametrize("uninterrupted", ["fsdp2"], indirect=True)
def test_another_learning_rate_in_the_same_output_is_refused_by_its_name(
    tmp_path: Path, inputs: Path, uninterrupted: Uninterrupted
) -> None:
    shutil.copytree(uninterrupted.output, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    ended = run(config(inputs, tmp_path / "out", "single", optimizer__learning_rate=5e-4), tmp_path)
    assert ended.code == Exit.OUTPUT_REFUSED
    assert "hyperparameters.learning_rate was 0.001 and is 0.0005 now" in ended.errors
    assert snapshot(tmp_path / "out") == before, "nothing of the other run was touched"


@pytest.mark.parametrize("uninterrupted", ["fsdp2"], indirect=True)
def test_a_finished_run_started_again_succeeds_without_a_step_on_any_layout(
    tmp_path: Path, inputs: Path, uninterrupted: Uninterrupted
) -> None:
    shutil.copytree(uninterrupted.output, tmp_path / "out")
    before = recorded(tmp_path / "out")
    values(run_ranks(1, work.run_uninterrupted, config(inputs, tmp_path / "out", "single"), tmp_path))
    assert recorded(tmp_path / "out") == before
    assert work.weights(tmp_path / "out") == work.weights(uninterrupted.output)


def recorded(output: Path) -> list[str]:
    return (output / "records.jsonl").read_text().splitlines()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_any_point_of_its_saves_a_run_continues_to_the_same_weights(tmp_path: Path, inputs: Path) -> None:
    settings = config(
        inputs, tmp_path / "uninterrupted", "single", lora=lora(dropout=0.1, target_modules=("q_proj",)),
        checkpointing={"every_steps": 2, "keep": 1},
        schedule={"name": "constant", "warmup_ratio": 0.0, "epochs": 1, "max_steps": 4},
    )  # fmt: skip
    [found] = values(run_ranks(1, work.die_at_many_points, settings, tmp_path, 7))
    assert set(found) == {None, 2, 4}
    assert found == sorted(found, key=lambda step: step or 0)
