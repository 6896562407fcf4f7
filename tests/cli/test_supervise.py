"""Replicas are read, stopped and killed, with all their processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest

from cli.replicas import alive, supervised
from finetune_cli.local.processes import Events, SignalReceived
from finetune_cli.local.supervise import signals_as_events

# Their waits are short: a signal that comes just before a long one is display only after it.
UNTIL_STOPPED = """
import signal, sys, time
def end(number, frame):
    print("asked")
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
print("ready")
while True:
    time.sleep(0.05)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: print("asked"))
print("ready")
while True:
    time.sleep(0.05)
"""
WITH_A_RANK = """
import subprocess, sys
rank = [sys.executable, "-c", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"]
subprocess.Popen(rank, start_new_session=True)
"""


def _when(text: str, *, times: int = 1) -> object:
    """On each of the first lines with this text, Ctrl-C is pressed."""
    left = [None] * times

    def press(line: str, events: Events) -> None:
        if line == text and left:
            left.pop()
            events.put(SignalReceived(signal.SIGINT))

    return press


def test_lines_of_both_streams_arrive_before_the_end(tmp_path: Path) -> None:
    script = "import sys; print('out'); print('half', end=''); sys.stdout.flush(); print('err', file=sys.stderr)"
    seen = supervised(tmp_path, script)
    assert sorted(seen.lines) == [(0, "err"), (0, "half"), (0, "out")]
    assert seen.codes == {0: 0}


def test_of_a_line_that_was_drawn_over_the_last_drawing_counts(tmp_path: Path) -> None:
    assert supervised(tmp_path, r"print('10%\r50%\r100%')").lines == [(0, "100%")]


def test_bytes_that_are_not_text_do_no_harm(tmp_path: Path) -> None:
    seen = supervised(tmp_path, r"import sys; sys.stdout.buffer.write(b'\xff\n')")
    assert seen.lines == [(0, "�")]


def test_an_end_by_a_signal_counts_as_a_shell_counts(tmp_path: Path) -> None:
    assert supervised(tmp_path, "import os; os.kill(os.getpid(), 9)").codes == {0: 137}


def test_when_one_replica_fails_the_others_are_asked_to_end(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)  # the failure waits until the other one listens
    failing = f"open({str(gate)!r}).read(); raise SystemExit(3)"
    waiting = UNTIL_STOPPED.replace('print("ready")', f'open({str(gate)!r}, "w").close()')
    seen = supervised(tmp_path, failing, waiting)
    assert seen.codes == {0: 3, 1: 75}
    assert (1, "asked") in seen.lines
    assert [each.launch.node for each in seen.run.ended] == [0, 1]


def test_a_replica_that_does_not_end_after_a_failure_is_killed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    deaf = DEAF.replace('print("ready")', f'open({str(gate)!r}, "w").close()')
    seen = supervised(tmp_path, f"open({str(gate)!r}).read(); raise SystemExit(3)", deaf, grace=0.0)
    assert seen.codes == {0: 3, 1: 137}
    assert alive(tmp_path) == []


def test_the_first_ctrl_c_asks_every_replica_to_stop(tmp_path: Path) -> None:
    seen = supervised(tmp_path, UNTIL_STOPPED, on_line=_when("ready"))  # type: ignore[arg-type]
    assert (seen.codes, seen.asks, seen.lines) == ({0: 75}, [1], [(0, "ready"), (0, "asked")])


def test_the_second_ctrl_c_kills_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def press(line: str, events: Events) -> None:
        events.put(SignalReceived(signal.SIGINT))  # at "ready", and again at "asked"

    seen = supervised(tmp_path, WITH_A_RANK + DEAF, on_line=press)
    assert (seen.codes, seen.asks[:2]) == ({0: 137}, [1, 2])
    assert alive(tmp_path) == []


def test_an_error_of_our_own_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(line: str, events: Events) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        supervised(tmp_path, WITH_A_RANK + DEAF, on_line=fail)
    assert alive(tmp_path) == []


def test_a_launcher_that_dies_takes_its_ranks_along(tmp_path: Path) -> None:
    """The rank holds the launcher's pipes, so without that this test would not end."""
    seen = supervised(tmp_path, WITH_A_RANK + "import os; os.kill(os.getpid(), 9)")
    assert seen.codes == {0: 137}
    assert alive(tmp_path) == []


def test_a_process_that_cannot_be_ended_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """It holds the pipes, as a rank does that waits in the kernel for a volume. Nothing marks it as ours."""
    script = """
import subprocess
held = subprocess.Popen(["/bin/sleep", "1000"], env={}, start_new_session=True)
print(held.pid)
raise SystemExit(13)
"""
    seen = supervised(tmp_path, script)
    os.kill(int(seen.lines[0][1]), signal.SIGKILL)
    assert seen.codes == {0: 13}


@pytest.mark.parametrize("hangup", ["SIG_DFL", "SIG_IGN"])
def test_a_replica_ends_when_the_command_line_is_killed(tmp_path: Path, hangup: str) -> None:
    """Also under nohup."""
    command = f"""
import os, signal
from pathlib import Path
from queue import SimpleQueue
from cli.replicas import launch
from finetune_cli.local.processes import Replica
signal.signal(signal.SIGHUP, signal.{hangup})
events = SimpleQueue()
replica = Replica(launch(Path({str(tmp_path)!r}), 0, {UNTIL_STOPPED!r}), events)
events.get()
print(replica._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    tests = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=dict(os.environ) | {"PYTHONPATH": str(tests)},
    ) as killed:  # fmt: skip
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # it is gone already
    ended, _, _ = select.select([descriptor], [], [], 30)
    os.close(descriptor)
    assert ended, f"process {pid} lives on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_events_only_while_a_run_goes_on(number: signal.Signals) -> None:
    events: Events = SimpleQueue()
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with signals_as_events(events):
            os.kill(os.getpid(), number)
            assert events.get(timeout=5) == SignalReceived(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hangup_stays_ignored_where_it_is() -> None:
    """nohup starts us like that, so that a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        events: Events = SimpleQueue()
        with signals_as_events(events):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            assert events.get(timeout=5) == SignalReceived(signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
