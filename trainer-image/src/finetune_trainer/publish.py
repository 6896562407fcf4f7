"""Where the final report goes: standard output, the output folder, the pod's termination message; and one line
for people on standard error.

Called by __main__, last of all.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import REPORT
from finetune_api.runtime.report import FinalReport

from .errors import StorageFailed
from .files import storage_errors, write_durable
from .records import Records, say

LIMIT = 4096
"""Bytes of a termination message; the kubelet cuts off what is longer."""


def publish(report: FinalReport, output: Path | None, brief: Path | None, *, first_node: bool) -> None:
    """Publish `report`. `output` is None where nothing may be written: it may belong to another job."""
    if report.exit_code != Exit.OK:
        sys.stderr.write(f"finetune-trainer: {report.reason}: {_with_rank(report)}\n")
    if brief is not None:
        # In place, not by rename: the kubelet mounts this one file.
        brief.write_text(shortened(report).line(), encoding="utf-8")
    if output is None or not (first_node or _is_cause(report)):
        return say(report)
    try:
        Records(output, speaks=True)(report)
        with storage_errors(output / REPORT):
            write_durable(output / REPORT, report.line().encode() + b"\n")
    except StorageFailed as error:  # of a full disk, which is most likely what the report says already
        sys.stderr.write(f"finetune-trainer: {error}\n")
    return None


def shortened(report: FinalReport, limit: int = LIMIT) -> FinalReport:
    """The report in at most `limit` bytes of JSON: its message loses its end."""
    keep = limit
    while len(report.line().encode()) > limit:
        keep = keep * 3 // 4
        cause = report.cause and report.cause.model_copy(update={"error": report.cause.error[: keep // 4]})
        report = report.model_copy(update={"message": report.message[:keep] + " ...", "cause": cause})
    return report


def _is_cause(report: FinalReport) -> bool:
    return report.cause is not None and report.exit_code != Exit.PEER_LOST


def _with_rank(report: FinalReport) -> str:
    cause = report.cause
    return report.message if cause is None else f"{report.message} (rank {cause.rank} on node {cause.node})"
