"""Receives a file on standard input and stores it on a volume. Arguments: destination, bytes, SHA-256.

Prints `at N` when it wants the bytes from N on, again as they arrive, and `done` when the file has its name. The
bytes so far stay in a part file, so that a transfer can be resumed. The file is renamed after its digest was
verified.
"""

import fcntl
import hashlib
import os
import sys
from pathlib import Path
from typing import BinaryIO

ALIVE = Path("/tmp/finetune-alive")  # noqa: S108 - a volume of the pod's own
CHUNK, REPORT, HASH = 1 << 16, 1 << 22, 1 << 28
"""Bytes: of one read, between two reports, of one step of the digest."""
BUSY, SHORT, DAMAGED, UNWRITABLE = 11, 12, 13, 14
"""Exit codes."""


def report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def append(file: BinaryIO, size: int) -> bool:
    """Append standard input up to `size`; whether the file is complete."""
    at = file.seek(0, os.SEEK_END)
    if at > size:
        at = file.truncate(0)
    report(f"at {at}")
    reported = at
    while at < size:
        chunk = os.read(0, min(CHUNK, size - at))
        if not chunk:
            return False
        at += file.write(chunk)
        if at - reported >= REPORT:
            ALIVE.touch()
            report(f"at {at}")
            reported = at
    file.flush()
    os.fsync(file.fileno())
    return True


def hashed(part: Path) -> str:
    """Its digest. Prints a line per step, because the other side takes a long silence for a broken connection."""
    found = hashlib.sha256()
    with part.open("rb") as file:
        while chunk := file.read(HASH):
            found.update(chunk)
            ALIVE.touch()
            report("checking")
    return found.hexdigest()


def receive(destination: Path, size: int, digest: str) -> int:
    part = destination.with_name(f".{destination.name}.part")
    if destination.exists() and destination.stat().st_size == size:  # it was renamed after its digest was verified
        report("done")
        return 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return BUSY
        if not append(file, size):
            return SHORT
    if hashed(part) != digest:
        part.unlink()
        return DAMAGED
    part.replace(destination)
    report("done")
    return 0


if __name__ == "__main__":
    ALIVE.touch()
    try:
        sys.exit(receive(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(UNWRITABLE)
