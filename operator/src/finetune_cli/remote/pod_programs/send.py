"""Writes a complete folder to standard output. Arguments: folder, name of its marker file, bytes to skip.

The first line is [[name, bytes], ...]; the files follow in that order, without the bytes that the other side already
has. A folder without its marker is incomplete.
"""

import json
import sys
from pathlib import Path

ALIVE = Path("/tmp/finetune-alive")  # noqa: S108 - a volume of the pod's own
CHUNK = 1 << 20
MISSING, UNREADABLE = 15, 16
"""Exit codes."""


def send(folder: Path, marker: str, start: int) -> int:
    if not (folder / marker).is_file():
        return MISSING
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    sizes = [path.stat().st_size for path in files]
    out = sys.stdout.buffer
    listed = [[str(path.relative_to(folder)), size] for path, size in zip(files, sizes, strict=True)]
    out.write(json.dumps(listed).encode() + b"\n")
    for path, size in zip(files, sizes, strict=True):
        with path.open("rb") as file:
            file.seek(min(start, size))
            while chunk := file.read(CHUNK):
                ALIVE.touch()
                out.write(chunk)
        start = max(0, start - size)
    out.flush()
    return 0


if __name__ == "__main__":
    ALIVE.touch()
    try:
        sys.exit(send(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        sys.exit(UNREADABLE)
