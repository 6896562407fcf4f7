"""Files to and from a claim, through a command in the transfer pod. The programs at its other end: inpod/."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from finetune_api.output import MARKER

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
    arrived, failures = -1, 0
    while True:
        before = arrived
        try:
            with execution.run(server, pod_path, CONTAINER, command) as running:
                for arrived in _sent(running, file, size):
                    moved(arrived)
            _check(running)
        except (Unreachable, ApiError) as error:
            failures = 1 if arrived > before else failures + 1
            if failures == ATTEMPTS or (isinstance(error, ApiError) and error.status < 500):
                raise
            time.sleep(PAUSE_SECONDS)
        else:
            moved(size)
            return


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


def download(server: Server, pod_path: str, folder: str, target: Path, begin: Callable[[int], Moved]) -> None:
    """Bring a finished folder of the pod to `target`, which must not exist and appears when all of it is here."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        command = ["python", "-c", inpod.text("send"), folder, MARKER]
        with execution.run(server, pod_path, CONTAINER, command) as running:
            _extracted(running, part, begin)
        _check(running)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extracted(running: Command, part: Path, begin: Callable[[int], Moved]) -> None:
    stream = io.BufferedReader(_Output(running.output()), CHUNK)
    head = stream.readline()
    if not head:
        return
    expected = json.loads(head)
    moved, done, files = begin(expected["bytes"]), 0, 0
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            path, source = part / _inside(member.name), tar.extractfile(member)
            if source is None:
                raise hindered(member.name, "TransferFailed", "The result holds something that is no file.", "")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                while chunk := source.read(CHUNK):
                    done += file.write(chunk)
                    moved(done)
            files += 1
    while stream.read(CHUNK):  # the end of the tar is padded; the ending comes after it
        pass
    if (done, files) != (expected["bytes"], expected["files"]):
        message = f"{files} of {expected['files']} files and {done} of {expected['bytes']} bytes have arrived."
        raise hindered("result", "TransferFailed", message, "Try again.")


def _inside(name: str) -> str:
    """The name, if it does not lead out of the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        raise hindered(name, "TransferFailed", "A name in the result leads out of its folder.", "Do not trust it.")
    return name


class _Output(io.RawIOBase):
    """Standard output of a command as a file, for tarfile."""

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
