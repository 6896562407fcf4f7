"""Replicas as processes: each in its own session, its output read line by line, killed with all its children."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import IO, Any

from finetune_api.runtime.protocol import CONFIG_ENV

from .launches import Launch

ORPHAN_POLL_SECONDS = 0.05
"""Interval of the search for ranks: one that is just starting shows no environment yet."""
ORPHAN_SECONDS = 10.0
"""How long ranks are searched for: one that waits in the kernel for a volume cannot be killed."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@dataclass(frozen=True)
class OutputLine:
    """A line that a replica has written: its bytes, without the newline."""

    launch: Launch
    raw: bytes
    is_stdout: bool
    """Whether it came from standard output, where records are, or from standard error."""

    @property
    def text(self) -> str:
        """What a terminal would show: of a progress bar, which is drawn over and over again, the last drawing.

        Every drawing in turn would be hundreds of lines, and a record behind one would not be found.
        """
        return self.raw.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


@dataclass(frozen=True)
class Ended:
    """A replica and all processes that it started have ended, save those that cannot be killed."""

    launch: Launch
    code: int
    """As a shell shows it: 128 + n for signal n."""


@dataclass(frozen=True)
class SignalReceived:
    """This process received a signal that asks it to stop."""

    signal: signal.Signals


Event = OutputLine | Ended | SignalReceived
Events = SimpleQueue[Event]
"""A SimpleQueue is reentrant: a signal handler may put while the main thread gets."""


class Replica:
    """A started launch. Its events are its lines, then one Ended."""

    def __init__(self, launch: Launch, events: Events, inherited: Sequence[int] = ()) -> None:
        self.launch = launch
        self._process = subprocess.Popen(
            launch.command, env=dict(launch.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=inherited,
            start_new_session=True,  # so that Ctrl-C reaches only us; replicas get SIGTERM, as pods do
            preexec_fn=_end_with_parent if _PRCTL else None,  # noqa: PLW1509 - two C calls, resolved beforehand
        )  # fmt: skip
        self._watcher = Thread(target=self._watch, args=(events,), daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Send SIGTERM: the launcher forwards it, and the ranks save a checkpoint and exit."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the launcher; its ranks are killed before Ended is sent."""
        self._process.kill()

    def end(self) -> None:
        """Kill the replica; return when none of its processes is left."""
        self._process.kill()
        self._watcher.join()

    def _watch(self, events: Events) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        streams = ((self._process.stdout, True), (self._process.stderr, False))
        readers = [Thread(target=self._read, args=(*each, events), daemon=True) for each in streams]
        for reader in readers:
            reader.start()
        code = self._process.wait()
        give_up = monotonic() + ORPHAN_SECONDS
        while any(reader.is_alive() for reader in readers) and monotonic() < give_up:
            _kill_orphans(self.launch)  # ranks that outlive their launcher keep the pipes open
            readers[0].join(ORPHAN_POLL_SECONDS)
            readers[1].join(ORPHAN_POLL_SECONDS)
        events.put(Ended(self.launch, code if code >= 0 else 128 - code))

    def _read(self, pipe: IO[bytes], is_stdout: bool, events: Events) -> None:
        with pipe:
            for raw in pipe:
                events.put(OutputLine(self.launch, raw.removesuffix(b"\n"), is_stdout))


def _end_with_parent() -> None:
    """If we are killed, the replica saves a checkpoint and exits instead of training on in the background.

    The kernel sends the signal once for each of our threads: a second SIGTERM would end the replica without saving.
    Of SIGHUP the launcher counts the first. Under nohup we ignore it, and what we start would too.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    _PRCTL(_DEATH_SIGNAL, signal.SIGHUP)


def _kill_orphans(launch: Launch) -> None:
    """Kill, by id, each process that carries the launch's own configuration path in its environment.

    Ranks run in their own sessions and lose their parent when the launcher is killed; no other process has this
    path. Without /proc the ranks end by themselves when their peers are lost.
    """
    mark = f"{CONFIG_ENV}={launch.config}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has exited, or belongs to another user
            if mark in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
