"""The files of a checkpoint's tensors: one of bytes for each rank, and the index of them all.

Written from a snapshot, read as DCP's storage, which calls the methods of the reader in their order. A file is read
once, from its begin to its end: its digest is computed of the bytes that become tensors.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
)
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from .files import Files
from .index import Chunk, Index, StoredTensor
from .marker import FileDigest
from .snapshot import Piece

_PIECE = 1 << 26
"""Bytes read at a time."""


class DamagedFile(Exception):
    """The content of the file of this name is not what was written."""


@dataclass(frozen=True)
class WrittenChunk:
    """A chunk, and the tensor that it is of."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk: Chunk


def write_shard(path: Path, pieces: Iterable[Piece], files: Files) -> list[WrittenChunk]:
    """Write `pieces` one after the other. Raises OSError."""
    written: list[WrittenChunk] = []
    position = 0
    with files.create(path) as sink:
        for piece in pieces:
            content = _bytes(piece.values)
            sink.write(content)
            written.append(_written(piece, path.name, position, content.nbytes))
            position += content.nbytes
    files.fsync(path)
    return written


def index_of(chunks: Iterable[WrittenChunk]) -> Index:
    """The index of the chunks of all ranks."""
    by_name: dict[str, list[WrittenChunk]] = {}
    for each in chunks:
        by_name.setdefault(each.name, []).append(each)
    return Index(tensors={name: _stored(by_name[name]) for name in sorted(by_name)})


class ShardReader(StorageReader):
    """Reads the chunks that a plan needs, by the given index.

    Raises DamagedFile after a file of another digest: what was read until then is in the tensors.
    """

    def __init__(
        self, folder: Path, index: Index, digests: Mapping[str, FileDigest], active: Callable[[], None]
    ) -> None:
        """`active` is called for each part that was read."""
        self._folder = folder
        self._index = index
        self._digests = digests
        self._active = active
        self._chunks = {
            MetadataIndex(name, chunk.offsets): (chunk, dtype_of(tensor))
            for name, tensor in index.tensors.items()
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A reader is used once."""

    def read_metadata(self) -> Metadata:
        return Metadata({name: _described(tensor) for name, tensor in self._index.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The index was read before."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._chunks[item.storage_index][0].file].append(item)
        for file in sorted(by_file):
            self._read_file(file, by_file[file], planner)
        return _done(None)

    def _read_file(self, file: str, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        of_chunk: dict[MetadataIndex, list[ReadItem]] = defaultdict(list)
        for item in items:
            of_chunk[item.storage_index].append(item)
        with (self._folder / file).open("rb") as stream:
            content = _Content(stream, self._active)
            for index in sorted(of_chunk, key=lambda each: self._chunks[each][0].position):
                whole = content.tensor(*self._chunks[index])
                for item in of_chunk[index]:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_part(whole, item))
                    planner.commit_tensor(item, target)
            if content.digest() != self._digests.get(file):
                raise DamagedFile(file)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _written(piece: Piece, file: str, position: int, length: int) -> WrittenChunk:
    sizes = tuple(piece.values.shape)
    chunk = Chunk(offsets=piece.offsets, sizes=sizes, file=file, position=position, length=length)
    return WrittenChunk(piece.name, str(piece.values.dtype).removeprefix("torch."), piece.shape, chunk)


class _Content:
    """The bytes of a file, in their order."""

    def __init__(self, stream: BufferedReader, active: Callable[[], None]) -> None:
        self._stream = stream
        self._active = active
        self._sha256 = hashlib.sha256()
        self._position = 0

    def tensor(self, chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
        """Raises ValueError if the file does not have it, or an earlier chunk has some of its bytes."""
        tensor = torch.empty(chunk.sizes, dtype=dtype)
        content = _bytes(tensor)
        there = content.nbytes == chunk.length and self._go_to(chunk.position)
        if not there or self._read(content) != chunk.length:
            raise ValueError(
                f"{chunk.file} does not have the {content.nbytes} bytes of {list(chunk.sizes)} x {dtype}"
            )
        return tensor

    def digest(self) -> FileDigest:
        """Of the whole file, whose rest is read for it."""
        self._go_to(os.fstat(self._stream.fileno()).st_size)
        return FileDigest(size=self._position, sha256=self._sha256.hexdigest())

    def _go_to(self, position: int) -> bool:
        """Read what is before a position; False if that is behind, or the file ends before it."""
        room = memoryview(bytearray(max(0, min(_PIECE, position - self._position))))
        while self._position < position and self._read(room[: position - self._position]):
            pass
        return self._position == position

    def _read(self, content: memoryview) -> int:
        """Fill `content`; return how many bytes there were."""
        before = self._position
        for start in range(0, content.nbytes, _PIECE):
            piece = content[start : start + _PIECE]
            read = self._stream.readinto(piece)
            self._sha256.update(piece[:read])
            self._position += read
            self._active()
        return self._position - before


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _part(tensor: torch.Tensor, item: ReadItem) -> torch.Tensor:
    for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
        tensor = tensor.narrow(dimension, start, length)
    return tensor


def _stored(chunks: list[WrittenChunk]) -> StoredTensor:
    first = chunks[0]
    return StoredTensor(dtype=first.dtype, shape=first.shape, chunks=tuple(each.chunk for each in chunks))


def _described(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
    return TensorStorageMetadata(TensorProperties(dtype_of(tensor)), torch.Size(tensor.shape), chunks)


def dtype_of(tensor: StoredTensor) -> torch.dtype:
    """Raises ValueError if this version of torch does not have it."""
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch {torch.__version__} has no dtype {tensor.dtype}")
    return dtype


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
