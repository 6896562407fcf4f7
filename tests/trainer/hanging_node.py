"""Two ranks, of which one hangs: `python -m trainer.hanging_node HANG FLOOR FOLDER`.

HANG is one of those below. Launcher, ranks and training loop are the product's own; only the rows are the test's.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.runtime.choices import Device
from finetune_trainer import launch, stacks
from finetune_trainer.config import NodeInfo
from finetune_trainer.handoff import FOLDER_ENV
from finetune_trainer.heartbeat import join
from finetune_trainer.rows import Rows
from finetune_trainer.sampler import Indices, Sampler
from trainer import models

COMMAND = (sys.executable, "-m", "trainer.hanging_node")
SETTINGS = models.run_config(
    Path("model"), Path("data"), Path("output"), engine="ddp", mesh__processes_per_node=2, mesh__data_parallel=2
)
VICTIM = 1


def sleep() -> None:
    """Hang as in a system call that never returns."""
    time.sleep(1e6)


def keep_the_interpreter() -> None:
    """Hang in C code that never gives the interpreter to another thread."""
    re.match(r"(a+)+$", "a" * 64 + "b")


HANGS = {"sleep": sleep, "keep": keep_the_interpreter}


@dataclass(frozen=True)
class HangingRows(Rows):
    """Rows, of which the later ones of the first epoch cannot be read: the thread that collates hangs."""

    def row(self, i: int) -> Any:
        if len(_READ) > len(self) // 4:
            hang("sleep")
        _READ.append(i)
        return super().row(i)


@dataclass(frozen=True)
class HangingSampler(Sampler):
    """An order of rows that has no fourth step: the loop itself hangs."""

    def step_rows(self, step: int) -> Indices:
        if step == 3:
            hang("keep")
        return super().step_rows(step)


def hang(how: str) -> None:
    if (os.environ["RANK"], sys.argv[1]) == (str(VICTIM), how):
        HANGS[how]()


_READ: list[int] = []


def as_launcher(floor: float, folder: Path) -> int:
    worker = (*COMMAND, *sys.argv[1:])
    report = launch.launch(SETTINGS.mesh, NodeInfo(0, 1), folder, worker=worker, stall_seconds=floor)
    sys.stdout.write(report.line() + "\n")
    return report.exit_code


def as_rank(rank: int, folder: Path) -> None:
    # A launcher starts without these.
    from finetune_trainer import engines, environment, loop, mesh, trainer  # noqa: PLC0415
    from finetune_trainer.sampler import BatchSharding  # noqa: PLC0415
    from trainer import parity_cases  # noqa: PLC0415

    stacks.answer(folder, rank)
    with environment.process_group(os.environ, Device.CPU) as rank_info:
        rows = HangingRows(**vars(parity_cases.rows(parity_cases.ROWS)))
        layout = mesh.build(SETTINGS, rank_info)
        train_state = loop.TrainState(
            SETTINGS, layout, engines.build(models.llama(), SETTINGS, layout), rows,
            HangingSampler(**vars(trainer.sampler(SETTINGS, len(rows)))), BatchSharding(2, 2), join(folder, rank),
        )  # fmt: skip
        loop.fit(train_state, 0, [])


if __name__ == "__main__":
    if "RANK" in os.environ:
        as_rank(int(os.environ["RANK"]), Path(os.environ[FOLDER_ENV]))
    else:
        sys.exit(as_launcher(float(sys.argv[2]), Path(sys.argv[3])))
