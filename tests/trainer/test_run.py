"""`python -m finetune_trainer` as a pod starts it: exit codes, reports, and messages on standard error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import pytest

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.protocol import (
    CONFIG_ENV,
    MASTER_ADDR_ENV,
    MASTER_PORT_ENV,
    NODE_RANK_ENV,
    NODES_ENV,
    REPORT_ENV,
    STALL_ENV,
)
from finetune_api.runtime.report import FinalReport, ProgressRecord, parse
from testbed.process import free_port
from trainer import models
from trainer.test_launch import ranks_of

TWO: dict[str, Any] = {"engine": "ddp", "mesh__processes_per_node": 2, "mesh__data_parallel": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    models.model_folder(folder / "model")
    models.dataset(folder / "train.jsonl")
    (folder / "broken.jsonl").write_text((folder / "train.jsonl").read_text() + '{"messages": [\n')
    return folder


@contextmanager
def trainer(
    inputs: Path,
    folder: Path,
    data: str = "train.jsonl",
    *,
    stall: str = "600",
    node: Mapping[str, str] = MappingProxyType({}),
    **changes: Any,
) -> Iterator[subprocess.Popen[str]]:
    """The trainer, running; its output and its report are in `folder`. `node`: variables of a node of several."""
    own = {**prepared(inputs, folder, data, **changes), **node, STALL_ENV: stall}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer"],
        env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def prepared(inputs: Path, folder: Path, data: str = "train.jsonl", **changes: Any) -> dict[str, str]:
    """The variables of a trainer whose run configuration is in `folder`."""
    model = changes.pop("model", inputs / "model")
    config = models.run_config(model, inputs / data, folder / "out", **changes)
    (folder / "run.json").write_text(config.model_dump_json())
    return {
        CONFIG_ENV: str(folder / "run.json"),
        REPORT_ENV: str(folder / "report"),
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class TrainerExit:
    code: int
    out: list[str]
    err: str
    report: FinalReport


def ended(process: subprocess.Popen[str], folder: Path) -> TrainerExit:
    out, err = process.communicate()
    report = report_in(folder)
    assert report.exit_code == process.returncode
    return TrainerExit(process.returncode, out.splitlines(), err, report)


def report_in(folder: Path) -> FinalReport:
    """The termination message."""
    report = parse((folder / "report").read_text())
    assert isinstance(report, FinalReport)
    return report


def stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def first_step(process: subprocess.Popen[str]) -> None:
    for line in stdout(process):
        if isinstance(parse(line), ProgressRecord):
            return
    pytest.fail("no step was reported")


def waiting_in(process: subprocess.Popen[str], function: str) -> None:
    """Wait until the only rank of a node is in `function`, by asking for its stack again and again."""
    while not ranks_of(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    found = threading.Event()

    def ask() -> None:
        while not found.wait(0.5):
            process.send_signal(signal.SIGUSR1)

    asking = threading.Thread(target=ask)
    asking.start()
    assert process.stderr is not None
    try:
        assert any(line.endswith(f" in {function}\n") for line in process.stderr), "the trainer has ended"
    finally:
        found.set()
        asking.join()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        pytest.param(
            {"engine": "zero3", "precision": "fp16"},
            6,
            "finetune-trainer: Unsupported: this version does not have fp16 with DeepSpeed ZeRO",
            id="engine",
        ),
        pytest.param({"model": "/nowhere"}, 4, "ModelRefused: model /nowhere: folder not found", id="model"),
        pytest.param({"data": "broken.jsonl"}, 3, "1 of 25 rows is bad\n  line 25: ", id="a broken line"),
        pytest.param({"data": "nowhere.jsonl"}, 3, "file not found", id="no data"),
        pytest.param({"sequence_length": 9999}, 2, "the model supports at most 512 tokens", id="too long"),
    ],
)
def test_refusals_come_in_one_sentence_and_write_nothing(
    tmp_path: Path, inputs: Path, changes: dict[str, Any], code: int, message: str
) -> None:
    with trainer(inputs, tmp_path, **changes) as process:
        found = ended(process, tmp_path)
    assert (found.code, message in found.err) == (code, True), found.err
    assert "Traceback" not in found.err
    assert found.out == [found.report.line()]
    assert not (tmp_path / "out").exists()


def test_a_killed_rank_is_the_cause_and_not_the_rank_that_lost_its_peer(tmp_path: Path, inputs: Path) -> None:
    with trainer(inputs, tmp_path, schedule__epochs=5000, **TWO) as process:
        first_step(process)
        os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
        found = ended(process, tmp_path)
    assert found.code == 137
    assert found.report.cause is not None
    assert found.report.cause.rank == 1
    assert found.err.count("rank 1 on node 0 exited without a report. The trainer was killed by signal 9.") == 1
    assert "Traceback" not in found.err
    assert parse((tmp_path / "out" / "report.json").read_text().strip()) == found.report
    assert ranks_of(process.pid) == []


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path, inputs: Path) -> None:
    with trainer(inputs, tmp_path, method="lora", lora=models.lora()) as process:
        first_step(process)
        stdout(process).close()
        assert process.wait() == 0
    lines = (tmp_path / "out" / "records.jsonl").read_text().splitlines()
    assert sum(isinstance(parse(line), ProgressRecord) for line in lines) == 12
    report = parse(lines[-1])
    assert isinstance(report, FinalReport)
    assert (report.exit_code, report.result) == (0, str(tmp_path / "out" / "result"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_there_are_ranks_stops_at_once(tmp_path: Path, inputs: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading the configuration blocks until it is written
    running = trainer(inputs, tmp_path, node={CONFIG_ENV: str(tmp_path / "pipe")})
    with running as process, (tmp_path / "pipe").open("w"):  # opens once the trainer reads
        process.send_signal(number)
        found = ended(process, tmp_path)
    assert (found.code, found.report.message) == (75, "stopped before training started")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_waits_for_another_one_stops_at_once(tmp_path: Path, inputs: Path, rank: int) -> None:
    node = {
        NODES_ENV: "2",
        NODE_RANK_ENV: str(rank),
        MASTER_ADDR_ENV: "127.0.0.1",
        MASTER_PORT_ENV: str(free_port()),
    }
    with trainer(inputs, tmp_path, node=node, engine="ddp", mesh__nodes=2, mesh__data_parallel=2) as process:
        waiting_in(process, "process_group")
        process.send_signal(signal.SIGTERM)
        found = ended(process, tmp_path)
    assert (found.code, found.report.message) == (75, "stopped before training started")


SIGNALLED = """
import signal, sys
from finetune_trainer import __main__ as pod

def called(frame, event, _):
    code = frame.f_code
    name = f"{code.co_filename}.{code.co_name}".replace(".py.", ".")
    for point in sys.argv[1:]:
        if event == "call" and name.endswith(f"/{point}"):
            sys.stderr.write(f"{point}\\n")
            signal.raise_signal(signal.SIGTERM)

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as for process 1
early = sorted(name for name in sys.modules if name.startswith(("pydantic", "torch", "numpy")))
assert not early, early
sys.setprofile(called)
pod.main()
"""
"""The trainer, which gets a stop signal whenever it calls one of the functions `file.function` of its arguments, and
writes a line that says so."""


def signalled(*points: str, variables: Mapping[str, str] = MappingProxyType({})) -> tuple[int, str]:
    """Exit code and standard error."""
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *points],
        env=os.environ | variables, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("at", ["node.<module>", "exits.Retry"], ids=["before the rest", "within the exit codes"])
def test_a_stop_signal_is_handled_while_the_trainer_is_imported(at: str) -> None:
    """Process 1 of a container gets no signal that it does not handle; the import takes a second."""
    assert signalled(at) == (Exit.STOPPED, f"{at}\n")


def test_stop_signals_after_the_ranks_have_ended_change_nothing(tmp_path: Path, inputs: Path) -> None:
    variables = prepared(inputs, tmp_path, schedule__max_steps=1)
    points = ("outcome.node_report", "tempfile.cleanup", "publish.publish")
    code, err = signalled(*points, variables=variables)
    assert (code, err.splitlines()[-len(points) :]) == (Exit.OK, list(points))
    report = parse((tmp_path / "out" / "report.json").read_text().strip())
    assert report == report_in(tmp_path)
    assert (report_in(tmp_path).exit_code, report_in(tmp_path).step) == (Exit.OK, 1)


def test_stop_signals_do_not_keep_a_refusal_from_being_published(tmp_path: Path, inputs: Path) -> None:
    variables = prepared(inputs, tmp_path, data="broken.jsonl")
    code, err = signalled("failures.report", "publish.publish", variables=variables)
    assert err.splitlines()[:2] == ["failures.report", "publish.publish"]
    assert (code, report_in(tmp_path).exit_code) == (Exit.DATA_REFUSED, Exit.DATA_REFUSED)
