"""The trainer as a pod starts it, on the GPU: a run that is stopped and resumed gives the bits of one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from bench.figures import Figure
from finetune_api.runtime.choices import Engine, Method
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import CONFIG_ENV
from finetune_api.runtime.report import FinalReport, ProgressRecord, parse
from finetune_api.runtime.run_config import RunConfig
from trainer import models

from .shapes import SHARDS

EPOCHS = 12
CASES = (
    (Method.FFT, Engine.SINGLE),
    (Method.LORA, Engine.FSDP2 if SHARDS else Engine.SINGLE),
)


def figures(device: torch.device) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.model_folder(folder / "model")
        models.dataset(folder / "train.jsonl")
        for method, engine in CASES:
            settings: dict[str, Any] = {"method": method, "engine": engine, "precision": "bf16"}
            settings["lora"] = models.lora(dropout=0.1) if method is Method.LORA else None
            config = models.run_config(
                folder / "model", folder / "train.jsonl", folder / f"{method}-{engine}",
                device=device.type, schedule__epochs=EPOCHS, checkpointing__every_steps=5, **settings,
            )  # fmt: skip
            yield from _figures(f"{method} {engine}", config)


def _figures(name: str, config: RunConfig) -> Iterator[Figure]:
    again = config.model_copy(update={"output": config.output + "-resumed"})
    code, losses = _run(config)
    yield Figure(f"{name}: exit code", code, "", most=Exit.OK)
    stopped, before = _run(again, stop_after=8)
    yield Figure(f"{name}: exit code of SIGTERM after step 8", stopped, "", least=Exit.STOPPED, most=Exit.STOPPED)
    resumed, after = _run(again)
    yield Figure(f"{name}: exit code of the next", resumed, "", most=Exit.OK)
    joined = before | after
    other = sum(joined.get(step) != loss for step, loss in losses.items())
    yield Figure(f"{name}: steps of {len(losses)} with another loss", other, "", most=0)
    one, two = (_weights(each) for each in (config, again))
    unlike = sum(not torch.equal(one[key], two[key]) for key in one) if one.keys() == two.keys() else len(one)
    yield Figure(f"{name}: tensors of {len(one)} with other bits", unlike, "", most=0)


def _run(config: RunConfig, stop_after: int | None = None) -> tuple[int, dict[int, float | None]]:
    """Exit code, and loss by step. `stop_after`: the step after whose record the trainer gets a SIGTERM."""
    path = Path(config.output + ".json")
    path.write_text(config.model_dump_json())
    losses: dict[int, float | None] = {}
    with subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer"], env=os.environ | {CONFIG_ENV: str(path)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            record = parse(line)
            if isinstance(record, FinalReport) and record.exit_code not in (Exit.OK, Exit.STOPPED):
                print(f"  {record.reason}: {record.message}", flush=True)
            if isinstance(record, ProgressRecord):
                losses[record.step] = record.loss
                if record.step == stop_after:
                    process.send_signal(signal.SIGTERM)
    return process.returncode, losses


def _weights(config: RunConfig) -> dict[str, torch.Tensor]:
    files = sorted((Path(config.output) / "result").glob("*.safetensors"))
    return {key: value for file in files for key, value in safetensors.torch.load_file(file).items()}
