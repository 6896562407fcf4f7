"""The files of a checkpoint's tensors: one of bytes for each rank, and the index of them all.

Written from a snapshot, read as DCP's storage, which calls the methods of the reader in their order.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
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
from .snapshot import Piece


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
    """Reads the chunks that a plan needs, by the given index."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self._index = index
        self._chunks = {
            MetadataIndex(name, chunk.offsets): (chunk, _dtype(tensor))
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
        for item in plan.items:
            chunk, dtype = self._chunks[item.storage_index]
            target = planner.resolve_tensor(item).detach()
            target.copy_(_part(_read_chunk(self._folder, chunk, dtype), item))
            planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _written(piece: Piece, file: str, position: int, length: int) -> WrittenChunk:
    sizes = tuple(piece.values.shape)
    chunk = Chunk(offsets=piece.offsets, sizes=sizes, file=file, position=position, length=length)
    return WrittenChunk(piece.name, str(piece.values.dtype).removeprefix("torch."), piece.shape, chunk)


def _read_chunk(folder: Path, chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.empty(chunk.sizes, dtype=dtype)
    content = _bytes(tensor)
    with (folder / chunk.file).open("rb") as stream:
        stream.seek(chunk.position)
        if content.nbytes != chunk.length or stream.readinto(content) != chunk.length:
            raise ValueError(
                f"{chunk.file} does not have the {content.nbytes} bytes of {list(chunk.sizes)} x {dtype}"
            )
    return tensor


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
    return TensorStorageMetadata(TensorProperties(_dtype(tensor)), torch.Size(tensor.shape), chunks)


def _dtype(tensor: StoredTensor) -> torch.dtype:
    dtype = getattr(torch, tensor.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch {torch.__version__} has no dtype {tensor.dtype}")
    return dtype


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
