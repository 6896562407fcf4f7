"""DCP's storage: one file of bytes for each rank, and the index of them all. DCP calls the methods in their order."""

from __future__ import annotations

import os
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
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from .collectives import rank
from .files import Files, Sink
from .index import INDEX, Chunk, Index, StoredTensor


class ShardWriter(StorageWriter):
    """Writes the chunks of this rank one after the other, and on rank 0 the index."""

    def __init__(self, folder: Path, files: Files) -> None:
        self._folder = folder
        self._files = files

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A writer is used once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder exists already: rank 0 made it before any rank writes."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        path = self._folder / f"shard-{rank():05d}.bin"
        results: list[WriteResult] = []
        position = 0
        with self._files.create(path) as sink:
            for item in plan.items:
                chunk = _write_chunk(item, planner, sink, path.name, position)
                position += chunk.length
                results.append(WriteResult(item.index, chunk.length, chunk))
        self._files.fsync(path)
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        chunks: dict[str, list[Chunk]] = {name: [] for name in metadata.state_dict_metadata}
        for result in (result for of_rank in results for result in of_rank):
            chunks[result.index.fqn].append(result.storage_data)
        tensors = {name: _stored(metadata.state_dict_metadata[name], chunks[name]) for name in sorted(chunks)}
        with self._files.create(self._folder / INDEX) as sink:
            sink.write(Index(tensors=tensors).to_json())
        self._files.fsync(self._folder / INDEX)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


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


def _write_chunk(item: WriteItem, planner: SavePlanner, sink: Sink, file: str, position: int) -> Chunk:
    assert item.type is not WriteItemType.BYTE_IO, f"{item.index.fqn}: the state of a checkpoint is tensors only"
    assert item.tensor_data is not None
    box = item.tensor_data.chunk
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)
    content = _bytes(tensor.detach().cpu().contiguous())
    sink.write(content)
    return Chunk(
        offsets=tuple(box.offsets), sizes=tuple(box.sizes), file=file, position=position, length=content.nbytes
    )


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


def _stored(tensor: object, chunks: list[Chunk]) -> StoredTensor:
    assert isinstance(tensor, TensorStorageMetadata)
    dtype = str(tensor.properties.dtype).removeprefix("torch.")
    return StoredTensor(dtype=dtype, shape=tuple(tensor.size), chunks=tuple(chunks))


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
