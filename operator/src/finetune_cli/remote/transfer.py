"""Files to and from a claim, through a command in the transfer pod. Its other end: pod_programs/."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from finetune_api.runtime.protocol import MARKER

from . import pod_exec, pod_programs
from .api_client import ApiClient, lines
from .errors import Unavailable, Unreachable, failed
from .pod_exec import Command
from .pod_programs import receive as receiving
from .pod_programs import send as sending
from .progress import OnProgress
from .transfer_pod import CONTAINER

CHUNK = 1 << 17
WINDOW = 4 * receiving.REPORT
"""Bytes that may be sent before the other side confirms them."""
ATTEMPTS, PAUSE_SECONDS = 5, 2.0
"""Consecutive connections that break without progress, and the pause after each."""

PROBLEMS = {
    receiving.BUSY: ("Another transfer is writing the same file", "Wait until it has ended, then try again."),
    receiving.SHORT: ("The connection ended before the last byte", "Try again: the transfer continues."),
    receiving.DAMAGED: ("The uploaded file differs from the local one", "Try again."),
    receiving.UNWRITABLE: ("The volume is not writable", "Free space on it, or check its permissions."),
    sending.MISSING: ("The result is missing or incomplete", "Check whether the job's output was deleted."),
    sending.UNREADABLE: ("The result cannot be read", "Check the permissions of the volume."),
}
"""Exit code of a program in the pod -> message and remedy."""


def upload_file(
    client: ApiClient, pod_path: str, file: Path, destination: str, digest: str, on_progress: OnProgress
) -> None:  # fmt: skip
    """Upload a file to a path of the pod, whole or not at all. Resumes after a broken connection."""
    size = file.stat().st_size
    command = ["python", "-c", pod_programs.source("receive"), destination, str(size), digest]
    received = -1

    def attempt() -> None:
        nonlocal received
        with pod_exec.run(client, pod_path, CONTAINER, command) as running:
            for received in _send(running, file, size):
                on_progress(received)
        _check(running)

    _retry(attempt, lambda: received)
    on_progress(size)


def download_folder(
    client: ApiClient, pod_path: str, folder: str, target: Path, on_start: Callable[[int], OnProgress]
) -> None:  # fmt: skip
    """Download a complete folder of the pod to `target`, which must not exist; it appears when it is complete.

    Resumes after a broken connection. `on_start` is called with the total number of bytes.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    download = _Download(part, on_start)

    def attempt() -> None:
        command = ["python", "-c", pod_programs.source("send"), folder, MARKER, str(download.received)]
        with pod_exec.run(client, pod_path, CONTAINER, command) as running:
            download.receive(running.stdout())
        _check(running)

    try:
        _retry(attempt, lambda: download.received)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _retry(attempt: Callable[[], None], received: Callable[[], int]) -> None:
    """Repeat an attempt while its connection breaks, until ATTEMPTS in a row make no progress."""
    failures = 0
    while True:
        before = received()
        try:
            return attempt()
        except (Unreachable, Unavailable):
            failures = 1 if received() > before else failures + 1
            if failures == ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS)


def _send(running: Command, file: Path, size: int) -> Iterator[int]:
    """Send the bytes that the other side lacks; yields the number that it has confirmed."""
    answers = lines(running.stdout())
    with file.open("rb") as source:
        confirmed = sent = -1
        while True:
            answer, _, number = next(answers, "").partition(" ")
            if not answer or answer == "done":
                break
            if answer == "at":
                confirmed = int(number)
                yield confirmed
                sent = source.seek(confirmed) if sent < 0 else sent
            while 0 <= sent < min(size, confirmed + WINDOW):
                running.write(chunk := source.read(min(CHUNK, size - sent)))
                sent += len(chunk)
    for _ in answers:  # to the exit code, which comes last
        pass


class _Download:
    """A folder that is being downloaded, possibly over several connections."""

    def __init__(self, folder: Path, on_start: Callable[[int], OnProgress]) -> None:
        self.received = 0
        """Bytes of all files together."""
        self._folder, self._on_start = folder, on_start
        self._on_progress: OnProgress = lambda _: None
        self._files: list[list[Any]] = []

    def receive(self, output: Iterator[bytes]) -> None:
        """Receive what the other side sends, starting with the list of its files."""
        head = b""
        while b"\n" not in head:
            if not (data := next(output, b"")):
                return
            head += data
        listed, _, rest = head.partition(b"\n")
        self._start(json.loads(listed))
        end = 0
        for name, size in self._files:
            end += size
            path = self._folder / _checked(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                while self.received < end:
                    rest = rest or next(output, b"")
                    missing = end - self.received
                    self._append(file, rest[:missing])
                    rest = rest[missing:]
        for _ in output:  # to the exit code, which comes last
            pass

    def _start(self, files: list[list[Any]]) -> None:
        if not self._files:
            self._files, self._on_progress = files, self._on_start(sum(size for _, size in files))
        elif files != self._files:
            raise failed("result", "TransferFailed", "The result changed during the transfer.", "Try again.")

    def _append(self, file: BinaryIO, chunk: bytes) -> None:
        if not chunk:
            message = f"The result ended early, after {self.received} bytes."
            raise failed("result", "TransferFailed", message, "Try again.")
        self.received += file.write(chunk)
        self._on_progress(self.received)


def _checked(name: str) -> str:
    """The name of a file, if it stays inside the folder."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/"):
        message = "The result contains a file name that points outside its folder."
        raise failed(name, "TransferFailed", message, "Do not use this result: something else has changed it.")
    return name


def _check(running: Command) -> None:
    """Raises OperationFailed unless the program exited with 0."""
    if running.code == 0:
        return
    unknown = (f"The program in the pod exited with code {running.code}", "Try again.")
    message, remedy = PROBLEMS.get(running.code if running.code is not None else -1, unknown)
    detail = f" ({running.stderr.strip()})" if running.stderr.strip() else ""
    raise failed("transfer", "TransferFailed", f"{message}{detail}.", remedy)
