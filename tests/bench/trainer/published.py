"""What full finetuning has learned, and what of that is in the files.

24 steps from a base in bf16, then the loss of the held-out rows by plain transformers, with the master weights of the
last checkpoint and with the published folder.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.figures import Figure
from finetune_trainer import checkpoint
from finetune_trainer.index import INDEX, Index
from finetune_trainer.marker import read_marker
from finetune_trainer.rows import Rows
from trainer import trainer_work

from . import smollm2

STEPS = 24
PREFIX = "parameters."


def figures() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base, output = _in_bf16(smollm2.model(), place / "base"), place / "output"
        config = smollm2.config(
            base, output, STEPS, 1, data__validation=str(smollm2.HELD_OUT),
            validation={"every_steps": STEPS, "keep_best": False, "metric": "val.loss", "greater_is_better": False},
        )  # fmt: skip
        smollm2.run(config, place / "handoff")
        rows = Rows.load(place / "handoff" / "validation")
        master = _master_weights(output)
        trained = _loss(base, rows, master)
        yield Figure("the base", _loss(base, rows), "nats")
        yield Figure("the master weights of the last checkpoint", trained, "nats")
        nearest = {key: value.bfloat16().float() for key, value in master.items()}
        yield Figure("  rounded to the nearest: more by", _loss(base, rows, nearest) - trained, "nats")
        result = output / "result"
        yield Figure("  published, computed in fp32: more by", _loss(result, rows) - trained, "nats", 0.005, -0.005)
        as_loaded = _loss(result, rows, dtype="auto")
        yield Figure("  published, as it loads: more by", as_loaded - trained, "nats", 0.005, -0.005)
        before = read_marker(result)
        shutil.rmtree(result)
        smollm2.run(config, place / "again")
        yield Figure("published twice with the same bytes", read_marker(result) == before, "", 1, 1)


def _in_bf16(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def _master_weights(output: Path) -> dict[str, Tensor]:
    """The parameters in the last checkpoint."""
    index = Index.from_json((output / "checkpoints" / f"step-{STEPS:08d}" / INDEX).read_bytes())
    state = {
        name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype)) for name, tensor in index.tensors.items()
    }
    checkpoint.load(output, STEPS, state)
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def _loss(folder: Path, rows: Rows, weights: Mapping[str, Tensor] | None = None, dtype: Any = torch.float32) -> float:
    """Of a folder's model, with other weights if they are given."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if weights:
        missing = model.load_state_dict(dict(weights), strict=False)
        assert not missing.unexpected_keys
    return trainer_work.mean_loss(model, rows)
