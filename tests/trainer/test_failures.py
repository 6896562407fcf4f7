"""Exit codes of failures, and where their reports are published."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Cause, FinalReport, parse
from finetune_data import DatasetRefused
from finetune_tokens import TokenizerRefused
from finetune_trainer import failures
from finetune_trainer.errors import DataRefused, ModelRefused, StorageFailed
from finetune_trainer.outcome import failure, stopped
from finetune_trainer.publish import publish, read_report, remove_report, truncated_report

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.7]:4711"


def after(cause: Exception, error: Exception) -> Exception:
    """An error that another one led to."""
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        pytest.param(DataRefused("no rows"), 3, "no rows", id="our own errors are complete"),
        pytest.param(StorageFailed("disk full"), 10, "disk full", id="storage"),
        pytest.param(
            DatasetRefused("a.jsonl", "it is empty", "Add rows."), 3, "a.jsonl: it is empty\nAdd rows.", id="rows"
        ),
        pytest.param(TokenizerRefused("no template"), 4, "no template", id="a tokenizer is part of the model"),
        pytest.param(
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            8,
            "A device ran out of memory. (CUDA out of memory. Tried to allocate 2 GiB) Lower hyper",
            id="a GPU without memory gets the remedy",
        ),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            8,
            "ran out of memory",
            id="a CPU without memory",
        ),
        pytest.param(MemoryError(), 8, "ran out of memory", id="Python without memory"),
        pytest.param(RuntimeError(GLOO), 9, "Another rank exited or became unreachable.", id="gloo"),
        pytest.param(
            dist.DistNetworkError("timed out"),
            9,
            "Another rank exited or became unreachable. (timed out)",
            id="the store",
        ),
        pytest.param(
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be"),
            12,
            "A GPU of the node has failed. (CUDA error: uncorrectable ECC error encountered) Have the node checked",
            id="memory of a GPU",
        ),
        pytest.param(
            dist.DistBackendError("NCCL error\nLast error:\nCuda failure 220 'uncorrectable NVLink error detected'"),
            12,
            "A GPU of the node has failed.",
            id="a link of GPUs, in the words of NCCL",
        ),
        pytest.param(RuntimeError("CUDA error: no CUDA-capable device is detected"), 12, "A GPU", id="a GPU is gone"),
        pytest.param(RuntimeError("CUDA error: unknown error"), 12, "A GPU", id="a GPU has fallen off the bus"),
        pytest.param(RuntimeError("CUDA unknown error - this may be due to"), 12, "A GPU", id="before it was used"),
        pytest.param(RuntimeError("CUDA error: system not yet initialized"), 12, "A GPU", id="a switch of GPUs"),
        pytest.param(RuntimeError("CUDA error: unspecified launch failure"), 1, "launch", id="maybe a program"),
        pytest.param(RuntimeError("CUDA error: an illegal memory access"), 1, "illegal", id="a program causes it"),
        pytest.param(dist.DistBackendError("NCCL error"), 9, "Another rank exited or became unreachable.", id="NCCL"),
        pytest.param(OSError(errno.ESTALE, "Stale handle", "/in/rows"), 10, "/in/rows: Stale", id="a volume"),
        pytest.param(after(OSError(errno.EIO, "I/O", "/a"), ModelRefused("bad")), 10, "/a: I/O", id="its model"),
        pytest.param(after(OSError(errno.ENOSPC, "Full"), DatasetRefused("a", "b", "c")), 10, "Full;", id="its rows"),
        pytest.param(after(OSError(errno.ENOENT, "No"), ModelRefused("none")), 4, "none", id="no such file"),
        pytest.param(KeyError("x"), 1, "KeyError: 'x'", id="an unknown error is a crash"),
    ],
)
def test_exit_codes_of_failures(error: Exception, code: int, message: str) -> None:
    report = failures.report(error, rank=2, node=1, step=7)
    assert (report.exit_code, report.step) == (code, 7)
    assert message in report.message
    assert report.cause is not None
    assert (report.cause.rank, report.cause.node, report.cause.error) == (2, 1, report.message)


def test_only_an_unknown_error_has_a_traceback() -> None:
    assert failures.trace(DataRefused("no rows")) == ""
    assert "KeyError" in failures.trace(KeyError("x"))


def broken(code: int = Exit.DATA_REFUSED, message: str = "no rows") -> FinalReport:
    return failure(code, message, Cause(rank=3, node=1, time=1.0, error=message))


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("x" * 9000, id="ASCII letters"),
        pytest.param('"\n' * 4000, id="letters that JSON writes as two"),
        pytest.param("\N{SNOWMAN}" * 4000, id="letters of three bytes"),
    ],
)
def test_a_long_report_is_truncated_to_the_size_of_a_termination_message(message: str) -> None:
    report = truncated_report(broken(message=message))
    assert len(report.line().encode()) <= 4096
    assert len(report.message) > 600
    assert report.cause is not None
    assert (report.exit_code, report.cause.rank) == (3, 3)


def test_a_short_report_stays_as_it_is() -> None:
    report = broken()
    assert truncated_report(report) == report


def test_a_report_goes_to_the_output_the_pod_and_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(broken(), tmp_path, tmp_path / "termination-log", first_node=True)
    printed = capsys.readouterr()
    assert printed.err == "finetune-trainer: DataRefused: no rows (rank 3 on node 1)\n"
    texts = [
        printed.out,
        *((tmp_path / name).read_text() for name in ("report.json", "termination-log", "records.jsonl")),
    ]
    assert [parse(text.strip()) for text in texts] == [parse(texts[0].strip())] * 4
    assert isinstance(parse(texts[0].strip()), FinalReport)


@pytest.mark.parametrize(
    ("code", "written"),
    [
        pytest.param(Exit.NON_FINITE, True, id="the cause writes the report, on whichever node it is"),
        pytest.param(Exit.PEER_LOST, False, id="who lost a peer on another node leaves it to the cause"),
    ],
)
def test_other_nodes_write_the_report_only_if_they_know_the_cause(tmp_path: Path, code: int, written: bool) -> None:
    publish(broken(code), tmp_path, None, first_node=False)
    assert (tmp_path / "report.json").exists() == written


OOM, LOST, CRASH, STOPPED, DONE = (
    failure(Exit.OUT_OF_MEMORY, "no memory", Cause(rank=1, node=1, time=2.0, error="no memory")),
    failure(Exit.PEER_LOST, "no peer", Cause(rank=0, node=0, time=1.0, error="no peer")),
    failure(Exit.CRASHED, "a bug", Cause(rank=0, node=0, time=3.0, error="a bug")),
    stopped(),
    FinalReport(time=4.0, exit_code=Exit.OK, reason="Succeeded", message="Done.", step=9),
)


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        pytest.param(OOM, LOST, OOM, id="a lost peer does not replace the cause, however early it was lost"),
        pytest.param(LOST, OOM, OOM, id="the cause replaces a lost peer"),
        pytest.param(OOM, CRASH, OOM, id="a later failure does not replace an earlier one"),
        pytest.param(OOM, STOPPED, OOM, id="a node that was stopped because of it does not replace it"),
        pytest.param(OOM, DONE, DONE, id="a run with a result has succeeded"),
    ],
)
def test_the_report_of_a_run_has_its_root_cause_whichever_node_ends_first(
    tmp_path: Path, first: FinalReport, second: FinalReport, stays: FinalReport
) -> None:
    for report in (first, second):
        publish(report, tmp_path, None, first_node=report.cause is None or report.cause.node == 0)
    assert read_report(tmp_path) == stays
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2, "the records have both"


def test_a_report_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    publish(OOM, tmp_path, None, first_node=False)
    for _ in range(2):
        remove_report(tmp_path)
    publish(LOST, tmp_path, None, first_node=True)
    assert read_report(tmp_path) == LOST


def test_nothing_is_written_into_an_output_that_is_not_ours(tmp_path: Path) -> None:
    publish(broken(Exit.OUTPUT_REFUSED), None, tmp_path / "termination-log", first_node=True)
    assert [path.name for path in tmp_path.iterdir()] == ["termination-log"]


def test_an_output_that_cannot_be_written_does_not_hide_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(broken(), tmp_path / "nowhere", None, first_node=True)
    printed = capsys.readouterr()
    assert "DataRefused: no rows" in printed.err
    assert "cannot write" in printed.err
    assert isinstance(parse(printed.out.strip()), FinalReport)
