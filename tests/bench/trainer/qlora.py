"""QLoRA beside LoRA: `finetune run` of the quickstart, as it is and with the settings that docs/adapters.md names."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Figure
from finetune_api.runtime.report import EvaluationRecord, ProgressRecord
from trainer import trainer_work

from . import smollm2

RATE = "hyperparameters.learning_rate=3e-3"
RUNS: Mapping[str, tuple[str, ...]] = {
    "LoRA": (),
    "QLoRA": (RATE, "training.use_qlora=true", "training.quantization.double_quant=false"),
    "LoRA at the rate of QLoRA": (RATE,),
}
"""Run -> what it changes in the quickstart."""
MOST = 1.05
"""Largest evaluation loss of QLoRA with its settings, as a share of LoRA's with the quickstart's."""


@dataclass(frozen=True)
class Ended:
    loss: float
    """Of the evaluation rows, after the last step."""
    gib: float
    """The most memory that a process of the run had."""
    tokens_per_second: float


def figures() -> Iterator[Figure]:
    found = {}
    for name, changes in RUNS.items():
        found[name] = ended = _run(changes)
        print(f"{name}: final evaluation loss {ended.loss:.4f}, {' '.join(changes)}", flush=True)
        yield Figure(f"{name}: peak memory", ended.gib, "GiB")
        yield Figure(f"{name}: tokens", ended.tokens_per_second, "/s")
    lora, other = found["LoRA"].loss, found["LoRA at the rate of QLoRA"].loss
    yield Figure("evaluation loss of QLoRA, of LoRA's", found["QLoRA"].loss / lora, "", MOST)
    yield Figure("  of LoRA's at the same rate", found["QLoRA"].loss / other, "")


def _run(changes: tuple[str, ...]) -> Ended:
    with tempfile.TemporaryDirectory() as folder:
        job, output = smollm2.EXAMPLES / "quickstart.yaml", Path(folder) / "output"
        sets = [word for each in changes for word in ("--set", each)]
        command = [sys.executable, "-m", "finetune_cli", "run", str(job), "--quiet", *sets]
        process = subprocess.Popen(
            [*command, "--model", str(smollm2.model()), "--output", str(output)], cwd=smollm2.EXAMPLES.parents[1]
        )
        _, status, usage = os.wait4(process.pid, 0)  # of the process and of all that it has waited for
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        records = trainer_work.records(output)
    losses = [record.loss for record in records if isinstance(record, EvaluationRecord)]
    rates = [record.tokens_per_second for record in records if isinstance(record, ProgressRecord)]
    assert losses[-1] is not None
    return Ended(losses[-1], usage.ru_maxrss / (1 << 20), statistics.median(rate for rate in rates if rate))
