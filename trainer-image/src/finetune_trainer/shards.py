"""Tensors of all ranks, written and read in parallel by torch's distributed checkpoint (DCP).

Each rank writes its own shards; any number of ranks, sharded in any way, can read them. Two things differ
from DCP as it comes: every file goes through our `Files`, and reading runs no code that stands in a file (DCP
unpickles its index, and whatever the index calls an object).
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from .agreement import first_rank, world_size
from .errors import OutputRefused, StorageFailed
from .files import Files, explain


def write_shards(folder: Path, state: dict[str, Any], files: Files) -> None:
    """Write a nested dict of tensors into an existing empty folder. Collective.

    Plain tensors are the same on every rank and written once; DTensors shard by shard. Raises StorageFailed
    on every rank if one cannot write.
    """
    try:
        with _alone_is_fine():
            save(state, storage_writer=_Writer(folder, files), no_dist=world_size() == 1)
    except CheckpointException as error:
        raise _write_failure(error, folder) from error


def read_shards(folder: Path, state: dict[str, Any]) -> None:
    """Fill the tensors of `state` in place. Collective.

    Raises OutputRefused on every rank if the names, shapes or dtypes are not those that were written.
    """
    reader = _Reader(folder, first_rank(partial(_read_index, folder)))
    try:
        with _alone_is_fine():
            load(state, storage_reader=reader, planner=_StrictPlanner(), no_dist=world_size() == 1)
    except CheckpointException as error:
        raise _misfit(folder, _first(error)[1]) from error


def _misfit(folder: Path, cause: BaseException) -> OutputRefused:
    return OutputRefused(
        f"checkpoint {folder} does not fit this run: {cause}; choose another output, "
        "or continue with the version of the trainer that wrote it"
    )


def _write_failure(error: CheckpointException, folder: Path) -> Exception:
    rank, cause = _first(error)
    if isinstance(cause, OSError):
        return StorageFailed(f"rank {rank}: {explain(cause, folder)}")
    return RuntimeError(f"rank {rank} failed to write {folder}: {cause!r}")


def _first(error: CheckpointException) -> tuple[int, BaseException]:
    rank = min(error.failures)
    return rank, error.failures[rank][0]


@contextmanager
def _alone_is_fine() -> Iterator[None]:
    """DCP warns when there is no process group; a run of one process has none and needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _Store(FileSystem):
    """DCP's view of a file system, by way of `Files`."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb"
        with self._files.create(Path(path)) as sink:
            yield cast("io.IOBase", sink)
        self._files.fsync(Path(path))

    def rename(self, path: Any, new_path: Any) -> None:
        self._files.rename(Path(path), Path(new_path))

    def rm_file(self, path: Any) -> None:
        self._files.remove(Path(path))

    def mkdir(self, path: Any) -> None:
        assert Path(path).is_dir(), f"{path} is made by rank 0 before any rank writes"


class _Writer(FileSystemWriter):
    def __init__(self, folder: Path, files: Files) -> None:
        # The store syncs each file by itself, where a failpoint can see it.
        super().__init__(folder, sync_files=False, overwrite=False)
        self.fs = _Store(files)


class _Reader(FileSystemReader):
    """Reads shards by an index that is read already."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._index


def _read_index(folder: Path) -> Metadata:
    try:
        with (folder / ".metadata").open("rb") as stream:
            return cast("Metadata", _IndexUnpickler(stream).load())
    except (OSError, pickle.UnpicklingError) as error:
        raise _misfit(folder, error) from error


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles DCP's index, which is made of these classes and builtin containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _INDEX_CLASSES:
            raise pickle.UnpicklingError(f"its index holds {module}.{name}, which no checkpoint of ours does")
        return super().find_class(module, name)


_METADATA = "torch.distributed.checkpoint.metadata"
_INDEX_CLASSES = {
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}


class _StrictPlanner(DefaultLoadPlanner):
    """Reads tensors only, and all of them: what the checkpoint has and the run has not is an error too."""

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        written = self.metadata.state_dict_metadata
        unknown = sorted(written.keys() - self.state_dict.keys())
        if unknown:
            raise ValueError(f"it holds {unknown[0]} and {len(unknown) - 1} more that the run does not have")
        for name, tensor in self.state_dict.items():
            _require_same_kind(name, tensor, written.get(name))
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise ValueError(f"{read_item.dest_index.fqn} is not a tensor")


def _require_same_kind(name: str, tensor: Any, written: object) -> None:
    assert isinstance(tensor, torch.Tensor), f"{name}: the state of a checkpoint is tensors only"
    if isinstance(written, TensorStorageMetadata) and written.properties.dtype != tensor.dtype:
        raise ValueError(f"{name} is {written.properties.dtype} there and {tensor.dtype} here")
