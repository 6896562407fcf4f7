"""Publish the final report: standard output, the output folder, the pod's termination message, and a readable line
on standard error.

Called by node.py at the end. report.json has the root cause, whichever node ends first; trainer.py removes the one of
the run before.
"""

from __future__ import annotations

from pathlib import Path

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import REPORT
from finetune_api.runtime.report import FinalReport
from finetune_api.runtime.root_cause import precedence
from finetune_data import regular

from .errors import StorageFailed
from .files import storage_errors, write_durable
from .records import RecordWriter, print_error, print_record

LIMIT = 4096
"""Bytes of a termination message; the kubelet truncates longer ones."""


def publish(report: FinalReport, output: Path | None, brief: Path | None, *, first_node: bool) -> None:
    """Publish `report`. `output` is None if this run does not own its output folder."""
    if report.exit_code != Exit.OK:
        print_error(f"{report.reason}: {_with_rank(report)}")
    if brief is not None:
        # Written in place, not by rename: the kubelet mounts this single file.
        brief.write_text(truncated_report(report).line(), encoding="utf-8")
    if output is None or not (first_node or _is_cause(report)):
        return print_record(report)
    try:
        RecordWriter(output, enabled=True)(report)
        with storage_errors(output / REPORT):
            if not _follows(report, read_report(output)):
                write_durable(output / REPORT, report.line().encode() + b"\n")
    except StorageFailed as error:  # most likely a full disk, which the report names already
        print_error(str(error))
    return None


def read_report(output: Path) -> FinalReport | None:
    """The report in the output folder, or None if there is none that can be read."""
    try:
        return FinalReport.model_validate_json(regular.content(output / REPORT))
    except (OSError, ValueError):
        return None


def remove_report(output: Path) -> None:
    """Remove the report of an earlier run: from now on a report is one of this run."""
    with storage_errors(output / REPORT):
        (output / REPORT).unlink(missing_ok=True)


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


def _follows(report: FinalReport, other: FinalReport | None) -> bool:
    """Whether the other one, by another node, is the cause of this one, which is no success."""
    if report.exit_code == Exit.OK or other is None or other.cause is None:
        return False
    return precedence(other.exit_code, other) < precedence(report.exit_code, report)


def _with_rank(report: FinalReport) -> str:
    cause = report.cause
    return report.message if cause is None else f"{report.message} (rank {cause.rank} on node {cause.node})"
