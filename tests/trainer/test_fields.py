"""Every field of the run configuration is read by the trainer: none is written for nobody."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from finetune_api.runtime.run_config import RunConfig
from finetune_trainer import engines, mesh
from finetune_trainer.environment import RankInfo
from finetune_trainer.errors import ConfigRefused
from trainer import fields_work as work
from trainer import models
from trainer.ranks import run_ranks, values

RUNS: dict[str, dict[str, Any]] = {
    "fft": {},
    "lora": {"method": "lora", "lora": models.lora()},
    "qlora": {"method": "qlora", "lora": models.lora(), "quantisation": {"format": "nf4", "double": True}},
    "fsdp2": {"engine": "fsdp2"},
    "ddp": {"engine": "ddp"},
    "zero2": {"engine": "zero2", "zero": {"reduce_bucket": 1000, "allgather_bucket": 1000}},
    "zero3": {
        "engine": "zero3",
        "offload": {"optimizer": True, "parameters": True},
        "zero": {
            "prefetch_bucket": 1000,
            "persistence_threshold": 100,
            "max_live_parameters": 10_000,
            "max_reuse_distance": 10_000,
            "sub_group": 10_000,
        },
    },
    "validation": {
        "validation": {"every_steps": 0, "keep_best": True, "metric": "val.loss", "greater_is_better": False},
    },
}
CHECK = "finetune_trainer.config"
CHECKED = {"validation.greater_is_better": "a loss is better when it is smaller: true is refused"}
"""Fields that only the check reads, and why."""
UNREAD = {
    "version": "another one is refused when the document is read",
    "name": "it tells people whose document this is",
}
"""Fields that nothing reads, and why."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, work.Readers]:
    """Readers of the fields, by run."""
    folder = tmp_path_factory.mktemp("inputs")
    model, rows = models.model_folder(folder / "model"), models.dataset(folder / "rows.jsonl", 8)
    found = {}
    for name, changes in RUNS.items():
        short = {"schedule__max_steps": 2, "data__validation": str(rows)}
        settings = models.run_config(model, rows, folder / name / "out", **short, **changes)
        found[name] = values(run_ranks(1, work.readers, settings, folder / name / "handoff"))[0]
    return found


def test_every_field_has_a_reader_besides_the_check_or_a_reason_to_have_none(runs: dict[str, work.Readers]) -> None:
    readers: work.Readers = defaultdict(set)
    for run in runs.values():
        for field, modules in run.items():
            readers[field] |= {module for module in modules if module.startswith("finetune_trainer.")}
    fields = set(leaves(RunConfig))
    assert {field for field in fields if not readers[field]} == UNREAD.keys()
    assert {field for field in fields if readers[field] == {CHECK}} == CHECKED.keys()


@pytest.mark.parametrize(
    ("run", "field", "module"),
    [
        ("fft", "mesh.processes_per_node", "launch"),
        ("fft", "mesh.nodes", "launch"),
        ("fft", "mesh.nodes", "config"),
        ("ddp", "mesh.data_parallel", "mesh"),
        ("fsdp2", "mesh.data_parallel", "mesh"),
        ("fsdp2", "mesh.tensor_parallel", "mesh"),
        ("fsdp2", "mesh.pipeline_parallel", "mesh"),
        ("fft", "optimizer.name", "optim"),
        ("validation", "validation.metric", "trainer"),
    ],
)
def test_a_field_is_read_where_it_takes_effect(
    runs: dict[str, work.Readers], run: str, field: str, module: str
) -> None:
    assert f"finetune_trainer.{module}" in runs[run][field]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"mesh__data_parallel": 1, "mesh__tensor_parallel": 2}, id="tensor parallel"),
        pytest.param({"mesh__data_parallel": 1, "mesh__pipeline_parallel": 2}, id="pipeline parallel"),
        pytest.param({"mesh__data_parallel": 4}, id="more replicas than ranks"),
    ],
)
def test_an_engine_refuses_ranks_that_train_on_the_same_rows(changes: dict[str, Any]) -> None:
    settings = models.run_config(Path("model"), Path("rows"), Path("out"), engine="fsdp2", **changes)
    with pytest.raises(ConfigRefused, match="does not spread the rows over all 2 ranks; set data_parallel 2"):
        engines.build(nn.Linear(1, 1), settings, mesh.build(settings, RankInfo(0, 2, 0, torch.device("cpu"))))


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the fields that hold no other fields."""
    for name, field in model.model_fields.items():
        parts = [t for t in (field.annotation, *get_args(field.annotation)) if _is_part(t)]
        if parts:
            yield from leaves(parts[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
