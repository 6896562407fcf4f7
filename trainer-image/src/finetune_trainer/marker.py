"""The marker: what makes a folder of a checkpoint or a result count, written last and removed first.

It lists every file with size and sha256, taken while the bytes went out. A folder without a marker, or with a
file of another size, does not exist for anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_api.runtime.protocol import MARKER

from .files import Files, Sink, remove_tree, write_durable


class Stamp(BaseModel):
    """Size in bytes and sha256 in hex of one file."""

    model_config = ConfigDict(frozen=True)
    size: int
    sha256: str


class Marker(BaseModel):
    """Content of the marker file."""

    model_config = ConfigDict(frozen=True)
    step: int
    """Optimizer steps done."""
    world_size: int
    """Ranks that wrote the folder."""
    digest: str = ""
    """Identity of the run; given for results, which leave their output folder."""
    files: dict[str, Stamp]
    """Path inside the folder -> what it must be."""


def put_in_place(temporary: Path, final: Path, marker: Marker, files: Files) -> None:
    """Make a finished folder count under its name. Its files are on the disk already; what has that name and
    no valid marker (its save did not live to write one, or it is damaged) goes."""
    files.fsync(temporary)
    if final.exists():
        remove_tree(final, files)
    files.rename(temporary, final)
    files.fsync(final.parent)
    write_durable(final / MARKER, marker.model_dump_json(indent=1).encode() + b"\n", files)


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder that counts, else None. Sizes are compared, contents are not."""
    try:
        marker = Marker.model_validate_json((folder / MARKER).read_bytes())
        complete = all((folder / name).stat().st_size == stamp.size for name, stamp in marker.files.items())
    except (OSError, ValidationError):
        return None
    return marker if complete else None


def stamp(path: Path) -> Stamp:
    """Size and digest of a file as it lies on the disk."""
    with path.open("rb") as stream:
        return Stamp(size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


class Recorder:
    """Files that stamps what is written, so that nothing has to be read back."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.stamps: dict[Path, Stamp] = {}

    def folder(self, path: Path) -> None:
        self._files.folder(path)

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        with self._files.create(path) as sink:
            hashing = _Hashing(sink)
            yield hashing
        self.stamps[path] = Stamp(size=hashing.size, sha256=hashing.sha256.hexdigest())

    def fsync(self, path: Path) -> None:
        self._files.fsync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._files.rename(old, new)
        self.stamps[new] = self.stamps.pop(old)

    def remove(self, path: Path) -> None:
        self._files.remove(path)
        self.stamps.pop(path, None)


class _Hashing:
    """A sink that takes the digest on the way."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, content: Any, /) -> int:
        written = self._sink.write(content)
        self.sha256.update(content)
        self.size += written
        return written
