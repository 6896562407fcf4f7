"""Real ranks that hang: the launcher prints every stack, names the rank, and ends. The rule: test_stall.py."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from finetune_api.runtime.exits import Exit
from trainer.hanging_node import COMMAND, HANGS, VICTIM
from trainer.test_launch import TESTS, ranks_of, report_of
from trainer.test_run import TWO, ended, first_step, inputs, trainer

__all__ = ["inputs"]

FLOOR = "10"
"""More than a step of the smallest model takes beside busy processes; the start may take six times that."""


@pytest.mark.parametrize("hang", HANGS)
def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(tmp_path: Path, hang: str) -> None:
    variables = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, hang, FLOOR, str(tmp_path)]
    with (
        (tmp_path / "err").open("w") as log,
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        report = report_of(process)
    err = (tmp_path / "err").read_text()
    assert (report.exit_code, report.reason) == (Exit.STALLED, "Stalled")
    assert report.cause is not None
    assert report.cause.rank == VICTIM
    assert f"Behind the others: rank {VICTIM}. Rank {VICTIM} is in " in report.message
    assert "(hanging_node.py:" in report.message or hang == "keep", "the hang is in the standard library's code"
    stacks = {rank: [line for line in err.splitlines() if line.startswith(f"rank {rank}: ")] for rank in (0, 1)}
    assert HANGS[hang].__name__ in "".join(stacks[VICTIM]), err
    waiting = ("in all_reduce", "in backward", "in summing")
    assert any(frame in "".join(stacks[0]) for frame in waiting), err


def test_a_rank_that_is_stopped_is_named_and_killed(tmp_path: Path, inputs: Path) -> None:
    with trainer(inputs, tmp_path, stall=FLOOR, schedule__epochs=5000, **TWO) as process:
        first_step(process)
        os.kill(ranks_of(process.pid)[1], signal.SIGSTOP)
        found = ended(process, tmp_path)
    assert (found.code, found.report.reason) == (Exit.STALLED, "Stalled")
    assert found.report.cause is not None
    assert found.report.cause.rank == 1
    assert "Rank 1 is stopped by a signal." in found.report.message
    assert "rank 1: no stack: the process is stopped by a signal" in found.err
    assert "rank 0:   File " in found.err
    assert "in fit" in found.err
    assert ranks_of(process.pid) == []


def test_the_launcher_prints_the_stacks_of_its_ranks_when_asked(tmp_path: Path, inputs: Path) -> None:
    with trainer(inputs, tmp_path, schedule__epochs=5000, **TWO) as process:
        first_step(process)
        process.send_signal(signal.SIGUSR1)
        assert process.stderr is not None
        ranks: set[str] = set()
        while ranks != {"rank 0", "rank 1"}:
            line = process.stderr.readline()
            ranks |= {line.partition(":")[0]} if " in fit" in line else set()
        process.send_signal(signal.SIGTERM)
        found = ended(process, tmp_path)
    assert found.code == Exit.STOPPED, "the run goes on, until it is stopped"
