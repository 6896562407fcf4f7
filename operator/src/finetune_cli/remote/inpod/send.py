"""Puts a finished folder onto standard output as a tar stream. Arguments: folder, name of its marker file.

The first line says {"bytes": N, "files": N}; the tar follows. A folder without its marker is not finished.
"""

import json
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO

ALIVE = Path("/tmp/finetune-alive")  # noqa: S108 - a volume of the pod's own
MISSING, UNREADABLE = 15, 16
"""Exit codes."""


class Touching:
    """A file whose reading keeps the pod alive."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        ALIVE.touch()
        return self.file.read(size)


def send(folder: Path, marker: str) -> int:
    if not (folder / marker).is_file():
        return MISSING
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    head = {"bytes": sum(path.stat().st_size for path in files), "files": len(files)}
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n")
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for path in files:
            with path.open("rb") as file:
                info = tar.gettarinfo(arcname=str(path.relative_to(folder)), fileobj=file)
                tar.addfile(info, Touching(file))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    ALIVE.touch()
    try:
        sys.exit(send(Path(sys.argv[1]), sys.argv[2]))
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(UNREADABLE)
