"""Which failure decides the outcome: the one that came first, not those that followed from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.replicas import launch
from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_cli.local import outcome
from finetune_cli.local.processes import Ended

HERE = Path("nowhere")


def _report(code: int, time: float, message: str = "in its own words") -> FinalReport:
    return FinalReport(time=time, exit_code=code, reason=exits.meaning(code).reason, message=message, step=1)


CASES: dict[str, tuple[list[tuple[int, int]], dict[int, float], int, tuple[str, int]]] = {
    "all went well": ([(1, 0), (0, 0)], {0: 1.0}, 0, ("job-1-worker-0", Exit.OK)),
    "an end without rank 0's report is no success": ([(0, 0)], {}, 0, ("job-1-worker-0", Exit.CRASHED)),
    "the one that failed, not the one that lost it": (
        [(0, Exit.PEER_LOST), (1, Exit.NON_FINITE)], {0: 1.0, 1: 2.0}, 0, ("job-1-worker-1", Exit.NON_FINITE),
    ),
    "of two failures the earlier by its own clock": (
        [(0, Exit.CRASHED), (1, Exit.OUT_OF_MEMORY)], {0: 5.0, 1: 4.0}, 0, ("job-1-worker-1", Exit.OUT_OF_MEMORY),
    ),
    "one that was killed before it could report came first": (
        [(0, Exit.CRASHED), (1, 137)], {0: 5.0}, 0, ("job-1-worker-1", 137),
    ),
    "what we ended ourselves is no cause": (
        [(0, Exit.DATA_REFUSED), (1, 143)], {0: 5.0}, 0, ("job-1-worker-0", Exit.DATA_REFUSED),
    ),
    "if all have lost a peer, the first of them": (
        [(0, Exit.PEER_LOST), (1, Exit.PEER_LOST)], {0: 2.0, 1: 1.0}, 0, ("job-1-worker-1", Exit.PEER_LOST),
    ),
    "if all stood still, the one that did first": (
        [(0, Exit.STALLED), (1, Exit.STALLED)], {0: 5.0, 1: 4.0}, 0, ("job-1-worker-1", Exit.STALLED),
    ),
    "stopped on request": ([(0, 75), (1, 75)], {0: 1.0, 1: 1.0}, 1, ("job-1-worker-0", Exit.STOPPED)),
    "stopped before the trainer could on_line_read it": ([(0, 143)], {}, 1, ("job-1-worker-0", Exit.STOPPED)),
    "a failure while stopping is a failure": (
        [(0, 75), (1, Exit.STORAGE_FAILED)], {0: 1.0, 1: 2.0}, 1, ("job-1-worker-1", Exit.STORAGE_FAILED),
    ),
    "killed on the second request": ([(0, 137), (1, 137)], {}, 2, ("job-1-worker-0", Exit.STOPPED)),
    "killed by somebody else after the first": ([(0, 137), (1, 75)], {1: 1.0}, 1, ("job-1-worker-0", 137)),
    "killed by somebody else": ([(0, 137), (1, 137)], {}, 0, ("job-1-worker-0", 137)),
}  # fmt: skip
"""(node, exit code) in the order of ending; times of the reports; requests to stop; replica and code told."""


@pytest.mark.parametrize("case", CASES)
def test_the_root_cause_decides(case: str) -> None:
    codes, times, requests, expected = CASES[case]
    ended = [Ended(launch(HERE, node), code) for node, code in codes]
    reports = {node: _report(dict(codes)[node], time) for node, time in times.items()}
    found = outcome.outcome(ended, reports, requests=requests)
    assert (found.replica, found.code) == expected
    assert found.message
    assert found.reason


def test_a_named_failure_speaks_for_itself_and_another_gets_the_usual_remedy() -> None:
    named = outcome.Outcome("r", Exit.DATA_REFUSED, _report(Exit.DATA_REFUSED, 1.0, "line 3 is bad; mend it"))
    nameless = outcome.Outcome("r", Exit.CRASHED, _report(Exit.CRASHED, 1.0, "KeyError: 'x'"))
    killed = outcome.Outcome("r", 137, None)
    assert (named.message, named.remedy) == ("line 3 is bad; mend it", "")
    assert nameless.remedy == "Read the log of the rank named in the message."
    assert (killed.reason, killed.message) == ("Killed", "The trainer was killed by signal 9.")
    assert "raise pods.memory" in killed.remedy


@pytest.mark.parametrize(("signal", "remedy"), [(7, "pods.sharedMemory"), (9, "pods.memory"), (11, "The log")])
def test_the_remedy_is_that_of_the_signal(signal: int, remedy: str) -> None:
    assert remedy in outcome.Outcome("r", 128 + signal, None).remedy


def test_a_report_that_is_absent_or_broken_is_none(tmp_path: Path) -> None:
    replica = launch(tmp_path, 0)
    assert outcome.read_report(replica) is None
    replica.report.parent.mkdir()
    replica.report.write_text('{"record": "report", "time":')
    assert outcome.read_report(replica) is None
    replica.report.write_text(_report(0, 1.0).line())
    assert outcome.read_report(replica) == _report(0, 1.0)
