"""One node of a job of two: `python -m trainer.parity_node` is its launcher, and what that launcher starts.

The launcher, the rendezvous of the ranks and the environment are the product's own; only the work is the test's.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from finetune_api.runtime.choices import Device, Engine
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_trainer import config, launch
from finetune_trainer.handoff import FOLDER_ENV, write_rank_report
from trainer import models

COMMAND = (sys.executable, "-m", "trainer.parity_node")
TRACES = "traces.pt"


def as_launcher(folder: Path) -> int:
    changes = {"engine": "ddp", "mesh__nodes": 2, "mesh__data_parallel": 2}
    settings = models.run_config(Path("model"), Path("data"), Path("output"), **changes)
    node = config.node(os.environ, settings)
    return launch.launch(settings.mesh, node, folder, worker=COMMAND).exit_code


def as_rank(folder: Path) -> None:
    import torch  # noqa: PLC0415 - a launcher starts without it

    from finetune_trainer import environment  # noqa: PLC0415
    from trainer import parity_cases  # noqa: PLC0415

    with environment.process_group(os.environ, Device.CPU) as rank_info:
        found = parity_cases.traces(parity_cases.everywhere(Engine.DDP, Engine.FSDP2))
        if rank_info.rank == 0:
            torch.save({name: vars(trace) for name, trace in found.items()}, folder / TRACES)
        report = FinalReport(time=time.time(), exit_code=Exit.OK, reason="Succeeded", message="", step=0)
        write_rank_report(folder, rank_info.rank, report)


if __name__ == "__main__":
    if "RANK" in os.environ:
        as_rank(Path(os.environ[FOLDER_ENV]))
    else:
        sys.exit(as_launcher(Path(sys.argv[1])))
