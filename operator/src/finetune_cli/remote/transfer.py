"""Files to and from a claim, through a command in the transfer pod. The programs at its other end: inpod/."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

from finetune_api.runtime.protocol import MARKER

from . import exec as execution
from . import inpod
from .carrier import CONTAINER
from .errors import ApiError, Unreachable, hindered
from .exec import Command
from .inpod import receive as receiving
from .inpod import send as sending
from .meter import Moved
from .server import Server

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK = 1 << 17
WINDOW = 4 * receiving.REPORT
"""Bytes that may be under way without an answer."""
ATTEMPTS, PAUSE_SECONDS = 5, 2.0
"""Broken connections in a row that bring nothing, and the pause after each."""

PROBLEMS = {
    receiving.BUSY: ("another transfer is writing the same file", "Wait until it is done, then try again."),
    receiving.SHORT: ("the connection ended before the last byte", "Try again: the transfer goes on where it was."),
    receiving.DAMAGED: ("the bytes that arrived are not those that were sent", "Try again."),
    receiving.UNWRITABLE: ("the volume cannot be written", "Free space on it, or check its permissions."),
    sending.MISSING: ("the result is not there, or not complete", "Check the job's output: was it removed?"),
    sending.UNREADABLE: ("the result cannot be read", "Check the permissions of the volume."),
}  # fmt: skip
"""Exit code of a program in the pod -> what it means, and the way out."""


def upload(server: Server, pod_path: str, file: Path, destination: str, digest: str, moved: Moved) -> None:
    """Bring a file to a path of the pod, whole or not at all; a broken connection goes on where it was."""
    size = file.stat().st_size
    command = ["python", "-c", inpod.text("receive"), destination, str(size), digest]
    arrived = -1

    def attempt() -> None:
        nonlocal arrived
        with execution.run(server, pod_path, CONTAINER, command) as running:
            for arrived in _sent(running, file, size):
                moved(arrived)
        _check(running)

    _until_done(attempt, lambda: arrived)
    moved(size)


def download(server: Server, pod_path: str, folder: str, target: Path, begin: Callable[[int], Moved]) -> None:
    """Bring a finished folder of the pod to `target`, which must not exist and appears when all of it is here.

    A broken connection goes on where it was.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    arriving = _Arriving(part, begin)

    def attempt() -> None:
        command = ["python", "-c", inpod.text("send"), folder, MARKER, str(arriving.at)]
        with execution.run(server, pod_path, CONTAINER, command) as running:
            arriving.take(io.BufferedReader(_Output(running.output()), CHUNK))
        _check(running)

    try:
        _until_done(attempt, lambda: arriving.at)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _until_done(attempt: Callable[[], None], at: Callable[[], int]) -> None:
    """Repeat an attempt whose connection broke, unless that brings nothing any more. `at`: bytes that are there."""
    failures = 0
    while True:
        before = at()
        try:
            return attempt()
        except (Unreachable, ApiError) as error:
            failures = 1 if at() > before else failures + 1
            if failures == ATTEMPTS or (isinstance(error, ApiError) and error.status < 500):
                raise
            time.sleep(PAUSE_SECONDS)


def _sent(running: Command, file: Path, size: int) -> Iterator[int]:
    """Send what the other side lacks; yields how much it says that it has."""
    answers = _words(running.output())
    with file.open("rb") as source:
        at = sent = -1
        while True:
            word, _, number = next(answers, "").partition(" ")
            if not word or word == "done":
                break
            if word == "at":
                at = int(number)
                yield at
                sent = source.seek(at) if sent < 0 else sent
            while 0 <= sent < min(size, at + WINDOW):
                running.write(chunk := source.read(min(CHUNK, size - sent)))
                sent += len(chunk)
    for _ in answers:  # to the ending
        pass


def _words(output: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for data in output:
        *whole, rest = (rest + data).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)


class _Arriving:
    """A folder on its way here, whatever becomes of the connections."""

    def __init__(self, folder: Path, begin: Callable[[int], Moved]) -> None:
        self.at = 0
        """Bytes of all files together that are here."""
        self._folder, self._begin = folder, begin
        self._moved: Moved = lambda _: None
        self._files: list[list[Any]] = []

    def take(self, stream: io.BufferedReader) -> None:
        """What the other side sends, beginning with the list of its files."""
        head = stream.readline()
        if not head:
            return
        self._agree(json.loads(head))
        end = 0
        for name, size in self._files:
            end += size
            path = self._folder / _inside(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                while self.at < end:
                    self._append(file, stream.read(min(CHUNK, end - self.at)))
        stream.read()  # the ending comes after the last byte

    def _agree(self, files: list[list[Any]]) -> None:
        if not self._files:
            self._files, self._moved = files, self._begin(sum(size for _, size in files))
        elif files != self._files:
            raise hindered("result", "TransferFailed", "The result was changed meanwhile.", "Try again.")

    def _append(self, file: BinaryIO, chunk: bytes) -> None:
        if not chunk:
            message = f"The result ended early: {self.at} bytes of it have arrived."
            raise hindered("result", "TransferFailed", message, "Try again.")
        self.at += file.write(chunk)
        self._moved(self.at)


def _inside(name: str) -> str:
    """The name, if it does not lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise hindered(name, "TransferFailed", "A name in the result leads out of its folder.", "Do not trust it.")
    return name


class _Output(io.RawIOBase):
    """Standard output of a command as a file."""

    def __init__(self, output: Iterator[bytes]) -> None:
        super().__init__()
        self._output, self._rest = output, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        data = self._rest or next(self._output, b"")
        count = min(len(data), len(view))
        view[:count], self._rest = data[:count], data[count:]
        return count


def _check(running: Command) -> None:
    """Raises Hindered unless the program ended well."""
    if running.code == 0:
        return
    known = PROBLEMS.get(running.code if running.code is not None else -1)
    why, remedy = known or (f"the program in the pod ended with exit code {running.code}", "Try again.")
    detail = f" ({running.complaint.strip()})" if running.complaint.strip() else ""
    raise hindered("transfer", "TransferFailed", f"{why[0].upper()}{why[1:]}{detail}.", remedy)
