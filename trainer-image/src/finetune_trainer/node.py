"""The trainer of one node: read the configuration, prepare the data, launch the ranks, publish the final report.

Called by __main__. Its input is FINETUNE_RUN_CONFIG and the PET_* variables.
Exit codes: finetune_api.runtime.exits.
"""

from __future__ import annotations

import faulthandler
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from finetune_api.runtime.protocol import REPORT_ENV
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.run_config import RunConfig

from . import config, failures, launch, outcome, preparation, rank_processes, stacks
from .config import NodeInfo
from .handoff import read_digest
from .publish import publish
from .records import print_error


class _StopSignal(BaseException):
    """A signal arrived before any rank was started."""


def run(environment: Mapping[str, str]) -> int:
    """One run on this node; returns its exit code."""
    faulthandler.register(stacks.SIGNAL)  # until there are ranks, this process is the one to ask
    settings, node = None, NodeInfo(0, 1)
    try:
        with _stoppable():
            settings = config.load(environment)
            node = config.node(environment, settings)
            report = _on_this_node(settings, node, config.stall_seconds(environment))
    except _StopSignal:
        report = outcome.stopped()
    except Exception as error:  # noqa: BLE001 - top level: every failure becomes a report
        report = failures.report(error, rank=0, node=node.rank, step=0)
        if trace := failures.trace(error):
            print_error(trace)
    brief = environment.get(REPORT_ENV)
    # Without a digest this run does not own the output: it may belong to another job.
    output = Path(settings.output) if settings is not None and report.digest else None
    publish(report, output, Path(brief) if brief else None, first_node=node.rank == 0)
    return report.exit_code


def _on_this_node(settings: RunConfig, node: NodeInfo, stall_seconds: float) -> FinalReport:
    with tempfile.TemporaryDirectory(prefix="finetune-") as name:
        folder = Path(name)
        preparation.prepare(settings, node.rank, folder, print_error)
        report = launch.launch(settings.mesh, node, folder, stall_seconds=stall_seconds)
        return report.model_copy(update={"digest": report.digest or read_digest(folder)})


@contextmanager
def _stoppable() -> Iterator[None]:
    """While the context lasts, a stop signal ends it. Afterwards it is ignored: a report is to be written."""
    for number in rank_processes.STOP_SIGNALS:
        signal.signal(number, _on_stop_signal)
    try:
        yield
    finally:
        _ignore_stop_signals()


def _on_stop_signal(number: int, frame: FrameType | None) -> None:
    _ignore_stop_signals()
    raise _StopSignal


def _ignore_stop_signals() -> None:
    for number in rank_processes.STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
