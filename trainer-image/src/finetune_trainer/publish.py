"""Publish the final report: standard output, the output folder, the pod's termination message, and a readable line
on standard error.

Called by node.py at the end.
"""

from __future__ import annotations

import sys
from pathlib import Path

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import REPORT
from finetune_api.runtime.report import FinalReport

from .errors import StorageFailed
from .files import storage_errors, write_durable
from .records import RecordWriter, print_record

LIMIT = 4096
"""Bytes of a termination message; the kubelet truncates longer ones."""


def publish(report: FinalReport, output: Path | None, brief: Path | None, *, first_node: bool) -> None:
    """Publish `report`. `output` is None if this run does not own its output folder."""
    if report.exit_code != Exit.OK:
        sys.stderr.write(f"finetune-trainer: {report.reason}: {_with_rank(report)}\n")
    if brief is not None:
        # Written in place, not by rename: the kubelet mounts this single file.
        brief.write_text(truncated_report(report).line(), encoding="utf-8")
    if output is None or not (first_node or _is_cause(report)):
        return print_record(report)
    try:
        RecordWriter(output, enabled=True)(report)
        with storage_errors(output / REPORT):
            write_durable(output / REPORT, report.line().encode() + b"\n")
    except StorageFailed as error:  # most likely a full disk, which the report names already
        sys.stderr.write(f"finetune-trainer: {error}\n")
    return None


def truncated_report(report: FinalReport, limit: int = LIMIT) -> FinalReport:
    """The report in at most `limit` bytes of JSON: the end of its message is cut off."""
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
