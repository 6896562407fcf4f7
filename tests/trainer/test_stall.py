"""When silence is a stall: tables of the rule, without processes. Real ranks that hang are in test_hang.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from finetune_trainer.files import DISK
from finetune_trainer.heartbeat import Heartbeat, HeartbeatFiles, Heartbeats, RankProgress, join
from finetune_trainer.stacks import innermost
from finetune_trainer.stall import FACTOR, OUTSIDE_STEPS, Stall, StalledRank, StallRule, report

FLOOR = 60.0
PATIENT = FLOOR * OUTSIDE_STEPS
FOR_EVER = 100_000
"""Seconds of the silence in which a life of a rank ends."""


def play(rank: Heartbeat, act: str, steps: int) -> None:
    """What a rank does in its life."""
    match act:
        case "step":
            rank.done(steps)
        case "batch":
            rank.advance()
        case "write":
            rank.active()
        case "save":
            rank.saving().__enter__()


def stall_found(folder: Path, life: list[tuple[float, str]]) -> float | None:
    """The rule, asked every second of a life: silences, and what the rank does after each.

    For how many seconds the rank was silent when the rule found a stall.
    """
    rule, heartbeats = StallRule(FLOOR), Heartbeats(folder, 1)
    rank, steps = join(folder, 0), 0
    rule.observe(heartbeats.read(), 0.0)
    for silence, act in life:
        for second in range(1, int(silence) + 1):
            if rule.observe(heartbeats.read(), 1.0):
                return second
        steps += act == "step"
        play(rank, act, steps)
        rule.observe(heartbeats.read(), 0.0)
    return None


QUICK = [(1, "step")] * 10


@pytest.mark.parametrize(
    ("life", "found"),
    [
        pytest.param([*QUICK, (FOR_EVER, "step")], FLOOR, id="quick steps and then none is a stall at the floor"),
        pytest.param(
            [*QUICK, (FLOOR - 1, "step"), *QUICK], None, id="a step that takes as long as the floor is no hang"
        ),
        pytest.param(
            [*QUICK, (40, "step"), (FOR_EVER, "step")], 40 * FACTOR, id="slow steps are allowed longer silences"
        ),
        pytest.param(
            [*QUICK, *[(50 * 4**n, "step") for n in range(5)]], None,
            id="steps that grow are no hang while each is less than the factor longer",
        ),
        pytest.param([(PATIENT - 1, "step"), *QUICK], None, id="the first step may take six floors"),
        pytest.param([(FOR_EVER, "step")], PATIENT, id="and is a stall after that"),
        pytest.param(
            [(PATIENT - 1, "step"), (FOR_EVER, "step")], FLOOR, id="a slow first step says nothing about the others"
        ),
        pytest.param(
            [*QUICK, *[(FLOOR - 1, "batch")] * 100, (1, "step")], None,
            id="a long step or evaluation moves with every batch",
        ),
        pytest.param(
            [*QUICK, (1, "save"), (PATIENT - 1, "write"), (PATIENT - 1, "write")], None,
            id="a checkpoint moves with every tensor that is written, each may take six floors",
        ),
        pytest.param([*QUICK, (1, "save"), (FOR_EVER, "write")], PATIENT, id="a save may hang as well"),
    ],
)  # fmt: skip
def test_silence(tmp_path: Path, life: list[tuple[float, str]], found: float | None) -> None:
    assert stall_found(tmp_path, life) == (None if found is None else found + 1)


def test_time_in_which_the_launcher_was_suspended_does_not_count(tmp_path: Path) -> None:
    rule, heartbeats = StallRule(FLOOR), Heartbeats(tmp_path, 1)
    join(tmp_path, 0).done(1)
    assert not any(rule.observe(heartbeats.read(), seconds) for seconds in (1.0, 10 * FLOOR, 1.0, 10 * FLOOR))


def test_of_several_ranks_one_that_moves_is_enough(tmp_path: Path) -> None:
    rule, heartbeats = StallRule(FLOOR), Heartbeats(tmp_path, 2)
    ranks = [join(tmp_path, local) for local in range(2)]
    for rank in ranks:
        rank.done(1)
    for _ in range(int(2 * FLOOR)):
        ranks[0].active()  # rank 0 writes a checkpoint, for which the other one waits
        assert rule.observe(heartbeats.read(), 1.0) is None
    found = [stall for _ in range(int(2 * FLOOR)) if (stall := rule.observe(heartbeats.read(), 1.0))]
    assert found[0].silent[1] > 3 * FLOOR > found[0].silent[0], "rank 1 has been silent for longer"


def test_every_write_is_a_heartbeat(tmp_path: Path) -> None:
    heartbeats = Heartbeats(tmp_path, 1)
    files = HeartbeatFiles(DISK, join(tmp_path, 0))
    with files.create(tmp_path / "file") as sink:
        seen = [heartbeats.read()[0].activity for _ in range(3) if sink.write(b"abc")]
    assert seen == [2, 3, 4]
    assert (tmp_path / "file").read_bytes() == b"abc" * 3


def at(step: int, position: int = 0, *, stepping: bool = True) -> RankProgress:
    return RankProgress(100, step, position, stepping, connected=True)


@pytest.mark.parametrize(
    ("progress", "states", "rank", "sentences"),
    [
        pytest.param(
            (at(7, 4), at(7, 3)), {2: "S", 3: "S"}, 3,
            "No rank of node 1 made progress for 61 s after step 7; 60 s are allowed. Behind the others: rank 3. "
            "Rank 3 is in f (rank3.py:9). ",
            id="the rank that is behind the others in its step is named",
        ),
        pytest.param(
            (at(6, 9), at(7, 3)), {2: "S", 3: "S"}, 2, "after step 6; 60 s are allowed. Behind the others: rank 2. ",
            id="and the one in an earlier step, wherever it is there",
        ),
        pytest.param(
            (at(7, 4), at(7, 4)), {2: "S", 3: "R"}, 2, "None is behind the others. ",
            id="ranks at the same point are all of them",
        ),
        pytest.param(
            (at(7, 4), at(7, 4)), {2: "S", 3: "T"}, 3, "60 s are allowed. Rank 3 is stopped by a signal. ",
            id="a process that is stopped is named",
        ),
        pytest.param(
            (at(7, 4), at(7, 3)), {2: "D", 3: "S"}, 2, "Rank 2 waits in the kernel for a volume or a device. ",
            id="one that cannot be interrupted is named, whichever is behind",
        ),
        pytest.param(
            (at(7, 3), at(7, 4)), {3: "S"}, 3, "None is behind the others. ",
            id="a rank that has exited is not",
        ),
        pytest.param(
            (at(7, 3, stepping=False), at(7, 4, stepping=False)), {2: "S", 3: "S"}, 2,
            "made progress for 61 s while it started or saved (after step 7); 60 s",
            id="outside of steps it is said",
        ),
    ],
)  # fmt: skip
def test_report(progress: tuple[RankProgress, ...], states: dict[int, str], rank: int, sentences: str) -> None:
    began = time.time()
    ranks = {each: StalledRank(state, f"f (rank{each}.py:9)") for each, state in states.items()}
    found = report(Stall(60.0, 1.0, progress, (61.0, 62.0)), 1, ranks)
    assert (found.exit_code, found.reason, found.step) == (13, "Stalled", progress[rank - 2].step)
    assert sentences in found.message
    assert "settings.stallSeconds" in found.message
    assert found.cause is not None
    assert (found.cause.rank, found.cause.node) == (rank, 1)
    assert found.cause.time + (61.0, 62.0)[rank - 2] >= began, "its time is that of its own last heartbeat"


def test_a_report_says_why_more_than_the_floor_was_allowed() -> None:
    found = report(Stall(200.0, 40.0, (at(7),), (201.0,)), 0, {0: StalledRank("", "")})
    assert "200 s are allowed, 5 times the longest pause before." in found.message


STACK = """Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007e (most recent call first):
  File "/opt/torch/autograd/graph.py", line 1113 in _engine_run_backward
  File "/app/loop.py", line 100 in _gradients
"""


SAVING = """Thread 0x00007f (most recent call first):
  File "/app/finetune_trainer/files.py", line 64 in fsync
  File "/app/finetune_trainer/background.py", line 67 in _save

Current thread 0x00007e (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/app/finetune_trainer/background.py", line 58 in wait
"""


@pytest.mark.parametrize(
    ("stack", "frame"),
    [
        pytest.param(SAVING, "fsync (files.py:64)", id="the thread that saves, where the main thread waits for it"),
        pytest.param(
            SAVING.replace("58 in wait", "49 in begin"),
            "wait (threading.py:327)",
            id="the main thread, where it waits for something else",
        ),
        pytest.param(STACK, "_engine_run_backward (graph.py:1113)", id="the main thread counts, which comes last"),
        pytest.param("no stack: the process is stopped by a signal\n", "", id="without a stack nothing is known"),
    ],
)
def test_where_a_rank_is(stack: str, frame: str) -> None:
    assert innermost(stack) == frame
