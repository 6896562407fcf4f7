"""One rank. The launcher (launch.py) starts it as a separate process; it writes its report to the handoff folder.

Only the traceback of a bug is printed here: when many ranks fail together, the launcher reports one of them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from . import (
    environment,
    failures,
    imports,  # noqa: F401 - for its effect on trainer
    records,
    stacks,
)
from .handoff import FOLDER_ENV, Handoff, write_rank_report
from .heartbeat import join
from .rank_processes import end_with_launcher
from .stop import Stop
from .trainer import Trainer


def main() -> None:
    end_with_launcher()
    # PEFT uses deprecated names of transformers, which users cannot change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    folder = Path(os.environ[FOLDER_ENV])
    handoff = Handoff.read(folder)
    with Stop() as stop:
        code = run(handoff, os.environ, folder, stop)
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the interpreter's shutdown: after a failure, threads of the process group may wait for lost peers.
    os._exit(code)


def run(handoff: Handoff, variables: Mapping[str, str], folder: Path, stop: Stop) -> int:
    """The run of one rank, to its report; returns the exit code. `variables` are those of the launcher."""
    rank = int(variables["RANK"])
    stacks.answer(folder, rank)
    environment.choose_kernels(tf32=handoff.config.tf32, deterministic=handoff.config.deterministic)
    heartbeat = join(folder, int(variables["LOCAL_RANK"]))
    trainer: Trainer | None = None
    try:
        with environment.process_group(variables, handoff.config.device, heartbeat.active) as rank_info:
            heartbeat.connected()
            trainer = Trainer(handoff, folder, rank_info, stop, heartbeat=heartbeat)
            report = trainer.run()
            write_rank_report(folder, rank, report)
    except Exception as error:  # noqa: BLE001 - top level of the rank: every failure becomes a report
        report = failures.report(error, rank, handoff.node, trainer.step if trainer else 0)
        records.print_lines(failures.trace(error))
        write_rank_report(folder, rank, report)
    return report.exit_code


if __name__ == "__main__":
    main()
