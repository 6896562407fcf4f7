"""The marker file makes the folder of a checkpoint or a result valid. It is written last and removed first.

It lists every file with size and sha256, computed while the bytes are written. A folder without a marker, or with
a file that is missing or of another size, is ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from finetune_api.runtime.protocol import MARKER
from finetune_data import regular

from .errors import StorageFailed
from .files import Files, Sink, describe, remove_tree, write_durable


class FileDigest(BaseModel):
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
    """Identity of the run; set for results, which may be copied out of their output folder."""
    files: dict[str, FileDigest]
    """By path inside the folder."""

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileDigest]) -> dict[str, FileDigest]:
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
                raise ValueError(f"{name} is outside of the folder")
        return files


def publish_folder(temporary: Path, final: Path, marker: Marker, files: Files) -> None:
    """Rename a finished folder to its final name and write the marker. Its files are flushed already.

    A folder of that name without a valid marker (an interrupted save, or a damaged one) is removed.
    """
    files.fsync(temporary)
    if final.exists() or final.is_symlink():
        remove_tree(final, files)
    files.rename(temporary, final)
    files.fsync(final.parent)
    write_marker(final, marker, files)


def read_marker(folder: Path) -> Marker | None:
    """The marker of a valid folder, else None. File sizes are compared, contents are not.

    Raises StorageFailed if that cannot be read now: what is only unreadable must not be removed, nor done again.
    """
    found = _marker_or_defect(folder)
    return found if isinstance(found, Marker) else None


def defect(folder: Path) -> str | None:
    """What makes a folder invalid; None if it is valid. Raises StorageFailed like `read_marker`."""
    found = _marker_or_defect(folder)
    return found if isinstance(found, str) else None


def _marker_or_defect(folder: Path) -> Marker | str:
    try:
        marker = Marker.model_validate_json(regular.content(folder / MARKER))
        for name, stamp in marker.files.items():
            size = (folder / name).stat().st_size
            if size != stamp.size:
                return f"{name} has {size} bytes instead of {stamp.size}"
    except ValidationError:
        return f"{MARKER} is not a marker"
    except (FileNotFoundError, NotADirectoryError) as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except OSError as error:
        raise StorageFailed(describe(error, folder, "read")) from error
    return marker


def digest_of(path: Path) -> FileDigest:
    """Size and sha256 of a file on the disk."""
    with path.open("rb") as stream:
        return FileDigest(size=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def digests_in(folder: Path, known: Mapping[Path, FileDigest]) -> dict[str, FileDigest]:
    """Of all files in a folder, by path inside it. `known`: of what was written by us; the rest is read."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): known.get(path) or digest_of(path) for path in found}


def write_marker(folder: Path, marker: Marker, files: Files) -> None:
    """Write or replace the marker of a folder atomically. Raises OSError."""
    write_durable(folder / MARKER, marker.model_dump_json(indent=1).encode() + b"\n", files)


class DigestingFiles:
    """`Files` that computes digests while writing, so that nothing has to be read back."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.digests: dict[Path, FileDigest] = {}

    @property
    def by_name(self) -> dict[str, FileDigest]:
        return {path.name: digest for path, digest in self.digests.items()}

    def folder(self, path: Path) -> None:
        self._files.folder(path)

    @contextmanager
    def create(self, path: Path) -> Iterator[Sink]:
        with self._files.create(path) as sink:
            hashing = _HashingSink(sink)
            yield hashing
        self.digests[path] = FileDigest(size=hashing.size, sha256=hashing.sha256.hexdigest())

    def fsync(self, path: Path) -> None:
        self._files.fsync(path)

    def rename(self, old: Path, new: Path) -> None:
        self._files.rename(old, new)
        self.digests[new] = self.digests.pop(old)

    def remove(self, path: Path) -> None:
        self._files.remove(path)
        self.digests.pop(path, None)


class _HashingSink:
    """A sink that computes the digest of what is written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, content: Any, /) -> int:
        written = self._sink.write(content)
        self.sha256.update(content)
        self.size += written
        return written
