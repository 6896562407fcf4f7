"""Full finetuning of SmolLM2-135M-Instruct on the rows of the quickstart, one process, computing in bf16."""

from __future__ import annotations

import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from finetune_api.runtime.run_config import RunConfig
from trainer import models, trainer_work

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
ROWS, HELD_OUT = EXAMPLES / "quickstart" / "train.jsonl", EXAMPLES / "quickstart" / "eval.jsonl"


@cache
def model() -> Path:
    """The folder of the model."""
    fetch = [sys.executable, str(EXAMPLES / "fetch_model.py")]
    return Path(subprocess.run(fetch, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def config(folder: Path, output: Path, steps: int, accumulation: int, **changes: Any) -> RunConfig:
    """`steps` steps at a constant 1e-5, of `accumulation` times eight rows."""
    given: dict[str, Any] = {
        "precision": "bf16",
        "optimizer__learning_rate": 1e-5,
        "schedule__max_steps": steps,
        "schedule__epochs": 50,
        "batch": {"per_device": 8, "accumulation": accumulation},
    }
    return models.run_config(folder, ROWS, output, **(given | changes))


def run(config: RunConfig, handoff: Path) -> None:
    """Train, without its records between the figures."""
    with redirect_stdout(StringIO()):
        trainer_work.run(config, handoff)
