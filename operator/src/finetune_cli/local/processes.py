"""Replicas as processes: started in a session of their own, heard line by line, ended with all they started."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from finetune_api.runtime.protocol import CONFIG_ENV

from .launches import Launch

SWEEP_SECONDS = 0.05
"""Between two looks for ranks: one that is being started shows no environment yet."""
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_PRCTL: Any = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


@dataclass(frozen=True)
class Line:
    """A line that a replica has written, without its end."""

    launch: Launch
    text: str
    out: bool
    """Standard output, where records are; else standard error."""


@dataclass(frozen=True)
class Ended:
    """A replica is gone, and everything that it had started."""

    launch: Launch
    code: int
    """As a shell counts: 128 + n for signal n."""


@dataclass(frozen=True)
class Asked:
    """Somebody wants the run to stop."""

    signal: signal.Signals


Event = Line | Ended | Asked
Events = SimpleQueue[Event]
"""SimpleQueue, because a signal handler puts into it while the main thread may be taking out."""


class Replica:
    """A started launch. What it does arrives as events: lines first, then one Ended."""

    def __init__(self, launch: Launch, events: Events) -> None:
        self.launch = launch
        self._process = subprocess.Popen(
            launch.command, env=dict(launch.env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # the terminal's Ctrl-C is for us; replicas get SIGTERM, as pods do
            preexec_fn=_end_with_parent if _PRCTL else None,  # noqa: PLW1509 - one call of C, resolved before
        )  # fmt: skip
        self._watcher = Thread(target=self._watch, args=(events,), daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Ask the launcher, which passes it on, to save a checkpoint and end."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the launcher at once; its ranks follow before Ended arrives."""
        self._process.kill()

    def end(self) -> None:
        """Return when nothing of the replica is left."""
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
        while any(reader.is_alive() for reader in readers):
            _sweep(self.launch)  # ranks that outlived their launcher keep the pipes open
            readers[0].join(SWEEP_SECONDS)
            readers[1].join(SWEEP_SECONDS)
        events.put(Ended(self.launch, code if code >= 0 else 128 - code))

    def _read(self, pipe: IO[bytes], out: bool, events: Events) -> None:
        with pipe:
            for raw in pipe:
                text = raw.decode("utf-8", "replace").rstrip("\r\n")
                events.put(Line(self.launch, text.rpartition("\r")[2], out))


def _end_with_parent() -> None:
    """If we are killed, the replica saves a checkpoint and ends, instead of training on unseen."""
    _PRCTL(_DEATH_SIGNAL, signal.SIGTERM)


def _sweep(launch: Launch) -> None:
    """Kill, by id, each process that carries the launch's own configuration path in its environment.

    Ranks run in sessions of their own and lose their parent when a launcher is killed; this path is theirs
    alone. Systems without /proc have no such list: there ranks end by themselves when their peers are gone.
    """
    mark = f"{CONFIG_ENV}={launch.config}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)
