"""What checkpoints in the background cost where a step takes seconds.

25 steps with a save every ten, and with one at the end, which every run makes. Twice each, in the order ABBA.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.figures import Figure
from finetune_api.runtime.report import CheckpointRecord, ProgressRecord
from trainer import trainer_work

from . import smollm2

STEPS, EVERY = 25, 10


def figures() -> Iterator[Figure]:
    folder = smollm2.model()
    seconds: dict[int, list[float]] = {EVERY: [], STEPS: []}
    with tempfile.TemporaryDirectory() as name:
        for number, every in enumerate((EVERY, STEPS, STEPS, EVERY)):
            output = Path(name) / str(number)
            config = smollm2.config(folder, output, STEPS, 5, checkpointing={"every_steps": every, "keep": 1})
            began = time.monotonic()
            smollm2.run(config, Path(name) / f"handoff-{number}")
            seconds[every].append(time.monotonic() - began)
            records = trainer_work.records(output)
            times = [record.time for record in records if isinstance(record, ProgressRecord)]
            steps = [after - before for before, after in pairwise(times)]
            yield Figure(f"a save every {every} steps: the median step", median(steps), "s", least=6)
            yield Figure(f"a save every {every} steps: the run", seconds[every][-1], "s")
            for save in (record for record in records if isinstance(record, CheckpointRecord)):
                yield Figure(f"  the save of step {save.step}", save.seconds, "s")
                yield Figure(f"  training stood still for the save of step {save.step}", save.blocked_seconds, "s")
    ratio = sum(seconds[EVERY]) / sum(seconds[STEPS])
    yield Figure("a save every ten steps, against one at the end", ratio, "x", most=1.05)
