"""Which of several failures is the root cause."""

from __future__ import annotations

import pytest

from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import Cause, FinalReport
from finetune_api.runtime.root_cause import precedence


def _report(code: int, time: float, cause: float | None = None) -> FinalReport:
    found = None if cause is None else Cause(rank=0, node=0, time=cause, error="")
    return FinalReport(time=time, exit_code=code, reason="", message="", step=0, cause=found)


CRASH, LOST, KILLED = int(Exit.CRASHED), int(Exit.PEER_LOST), 137
CASES: dict[str, tuple[list[tuple[int, float | None, float | None]], int]] = {
    "the earlier of two": ([(CRASH, 2.0, None), (CRASH, 1.0, None)], 1),
    "a lost peer is no cause, however early": ([(LOST, 1.0, None), (CRASH, 2.0, None)], 1),
    "of lost peers alone the earliest": ([(LOST, 2.0, None), (LOST, 1.0, None)], 1),
    "the time of the cause counts, not that of the report": ([(CRASH, 1.0, None), (CRASH, 5.0, 0.5)], 1),
    "a process that left no report failed before it could write one": ([(CRASH, 1.0, None), (KILLED, None, None)], 1),
}  # fmt: skip
"""(exit code, time of the report, time of its cause) of each failure; index of the root cause."""


@pytest.mark.parametrize("case", CASES)
def test_the_root_cause_is(case: str) -> None:
    failures, expected = CASES[case]
    keys = [
        precedence(code, None if time is None else _report(code, time, cause)) for code, time, cause in failures
    ]  # fmt: skip
    assert keys.index(min(keys)) == expected


def test_the_caller_may_name_further_exit_codes_that_only_follow() -> None:
    assert precedence(143, None) < precedence(LOST, None)
    assert precedence(143, None, secondary={LOST, 143}) == precedence(LOST, None)
