"""One rank. Started by the launcher (launch.py) as a process of its own; leaves its ending in the handoff folder.

Nothing is printed here but the traceback of a bug: of many ranks that fail together the launcher names one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from pathlib import Path

from . import environment, failures
from .handoff import FOLDER_ENV, Handoff, write_ending
from .job import Job
from .stop import Stop

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    _die_with_launcher()
    # PEFT calls transformers by names that will go away: nothing that a user of ours could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    folder = Path(os.environ[FOLDER_ENV])
    handoff = Handoff.read(folder)
    with Stop() as stop:
        code = _run(handoff, folder, stop)
    sys.stdout.flush()
    sys.stderr.flush()
    # Past the interpreter's own end: after a failure, threads of the process group may wait for lost peers.
    os._exit(code)


def _run(handoff: Handoff, folder: Path, stop: Stop) -> int:
    rank = int(os.environ["RANK"])
    job: Job | None = None
    try:
        with environment.joined(os.environ, handoff.config.device) as place:
            job = Job(handoff, folder, place, stop)
            report = job.run()
            write_ending(folder, rank, report)
    except Exception as error:  # noqa: BLE001 - the edge of the rank: every failure becomes a report
        report = failures.report(error, rank, handoff.node, job.step if job else 0)
        sys.stderr.write(failures.trace(error))
        write_ending(folder, rank, report)
    return report.exit_code


def _die_with_launcher() -> None:
    """A rank whose launcher was killed would train on, or hold a GPU, with nobody to tell."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    main()
