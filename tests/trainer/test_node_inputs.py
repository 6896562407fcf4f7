"""Nodes that see other files than node 0: every rank is refused before anything is trained or claimed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer.errors import DataRefused, ModelRefused, RunError
from finetune_trainer.rows import Rows
from trainer import models
from trainer import trainer_work as work
from trainer.ranks import run_ranks, values

WORLD = 3
VALIDATED = {"every_steps": 0, "keep_best": False, "metric": "val.loss", "greater_is_better": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What node 0 sees."""
    folder = tmp_path_factory.mktemp("files")
    models.model_folder(folder / "model")
    models.dataset(folder / "train.jsonl", 12)
    models.dataset(folder / "eval.jsonl", 6, seed=500)
    return folder


def config(files: Path, output: Path) -> RunConfig:
    return models.run_config(
        files / "model", files / "train.jsonl", output, engine="ddp", mesh__nodes=WORLD, mesh__data_parallel=WORLD,
        data__validation=str(files / "eval.jsonl"), validation=VALIDATED, schedule__epochs=1,
    )  # fmt: skip


def nothing(files: Path) -> None:
    """The files stay as they are."""


def other_rows(files: Path) -> None:
    models.dataset(files / "train.jsonl", 12, seed=1)


def one_row_more(files: Path) -> None:
    models.dataset(files / "train.jsonl", 13)


def other_evaluation(files: Path) -> None:
    models.dataset(files / "eval.jsonl", 6, seed=501)


def other_template(files: Path) -> None:
    change(
        files / "model" / "tokenizer_config.json",
        chat_template=models.TEMPLATE.replace("role'] + '\n", "role'] + ':"),
    )


def other_rope(files: Path) -> None:
    change(files / "model" / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})


def other_weights(files: Path) -> None:
    models.model_folder(files / "model", seed=1)


def blank_lines(files: Path) -> None:
    path = files / "train.jsonl"
    path.write_text(path.read_text().replace("\n", "\n\n"))


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def copies(files: Path, folder: Path, change: Callable[[Path], None]) -> list[Path]:
    """The files of each node: those of nodes 1 and 2 are changed."""
    folders = [folder / f"node-{node}" for node in range(WORLD)]
    for node, copied in enumerate(folders):
        shutil.copytree(files, copied)
        if node:
            change(copied)
    return folders


@pytest.mark.parametrize(
    ("change", "refusal", "sentence"),
    [
        pytest.param(other_rows, DataRefused, "job.data: its rows, or the tokens that ", id="other rows"),
        pytest.param(one_row_more, DataRefused, "job.data: its rows, or the tokens that ", id="a row more"),
        pytest.param(
            other_evaluation, DataRefused, "data.validation_path: its rows are ", id="other evaluation rows"
        ),
        pytest.param(other_template, ModelRefused, "the content of job.model is ", id="another template"),
        pytest.param(other_rope, ModelRefused, "the content of job.model is ", id="another model"),
        pytest.param(other_weights, ModelRefused, "the content of job.model is ", id="other weights"),
    ],
)
def test_nodes_with_other_files_are_named_on_every_rank(
    tmp_path: Path, files: Path, change: Callable[[Path], None], refusal: type[RunError], sentence: str
) -> None:
    nodes = [config(folder, tmp_path / "out") for folder in copies(files, tmp_path, change)]
    errors = [ended.error for ended in run_ranks(WORLD, work.run_as_node, nodes, tmp_path)]
    assert [type(error) for error in errors] == [refusal] * WORLD
    [message] = {str(error) for error in errors}
    assert message.startswith(sentence)
    assert "not the same on node 1, 2 as on node 0; use files that all nodes share" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "value", "same"),
    [
        pytest.param("tokens", np.array([1, 2, 3, 5], np.int32), False, id="tokens"),
        pytest.param("targets", np.array([False, True, False, False]), False, id="targets"),
        pytest.param("offsets", np.array([0, 3, 4]), False, id="where rows begin"),
        pytest.param("lines", np.array([1, 3], np.int32), True, id="lines, which messages name"),
    ],
)
def test_the_digest_of_rows_is_of_all_that_is_computed_from(part: str, value: np.ndarray, same: bool) -> None:
    rows = Rows(
        tokens=np.array([1, 2, 3, 4], np.int32), targets=np.array([False, True, False, True]),
        offsets=np.array([0, 2, 4]), lines=np.array([1, 2], np.int32),
    )  # fmt: skip
    changed: dict[str, Any] = {part: value}
    assert (replace(rows, **changed).digest == rows.digest) is same


@pytest.mark.parametrize("change", [nothing, blank_lines], ids=["the same files", "files with the same rows"])
def test_nodes_that_prepare_the_same_train(tmp_path: Path, files: Path, change: Callable[[Path], None]) -> None:
    nodes = [config(folder, tmp_path / "out") for folder in copies(files, tmp_path, change)]
    reports = values(run_ranks(WORLD, work.run_as_node, nodes, tmp_path))
    assert [(report.exit_code, report.step) for report in reports] == [(0, 1)] * WORLD
