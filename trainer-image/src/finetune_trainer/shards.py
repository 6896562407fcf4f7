"""Reading the tensors of a checkpoint, in parallel, by torch's distributed checkpoint (DCP).

Any number of ranks, sharded in any way, reads what any other number has written; DCP plans who reads what. The files
are ours (shard_files.py), because DCP's own are pickles: they depend on the versions of Python and torch that wrote
them, and reading them runs code.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from .collectives import group, on_rank_0, world_size
from .errors import OutputRefused, StorageFailed
from .files import describe
from .index import INDEX, Index
from .marker import FileDigest
from .shard_files import DamagedFile, ShardReader, dtype_of

_PICKLED_INDEX = ".metadata"


def read_shards(
    folder: Path, state: dict[str, Any], digests: Mapping[str, FileDigest], active: Callable[[], None]
) -> None:
    """Fill the tensors of `state` in place; `active` is called for each part that was read. Collective.

    Raises DamagedFile on every rank if a file has another digest than in `digests`, and OutputRefused if the names,
    shapes or dtypes are not those that were written.
    """
    _read(folder, state, _reader(folder, _index(folder), digests, active), _StrictPlanner())


def read_kind(
    folder: Path, kind: str, digests: Mapping[str, FileDigest], active: Callable[[], None]
) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `kind` and a dot, without it. Collective; raises what `read_shards` does."""
    index = _index(folder)
    named = {name: tensor for name, tensor in index.tensors.items() if name.startswith(f"{kind}.")}
    reader = _reader(folder, index, digests, active)
    state = {name: torch.empty(tensor.shape, dtype=dtype_of(tensor)) for name, tensor in named.items()}
    _read(folder, dict(state), reader, DefaultLoadPlanner())
    return {name.removeprefix(f"{kind}."): tensor for name, tensor in state.items()}


def _read(folder: Path, state: dict[str, Any], reader: ShardReader, planner: DefaultLoadPlanner) -> None:
    try:
        with _single_process_allowed():
            load(
                state, storage_reader=reader, planner=planner, process_group=group(),
                no_dist=world_size() == 1,
            )  # fmt: skip
    except CheckpointException as error:
        raise _read_failure(error, folder) from error


def _index(folder: Path) -> Index:
    return on_rank_0(partial(_read_index, folder))


def _reader(folder: Path, index: Index, digests: Mapping[str, FileDigest], active: Callable[[], None]) -> ShardReader:
    try:
        return ShardReader(folder, index, digests, active)
    except ValueError as error:
        raise _misfit(folder, error) from error


def _read_index(folder: Path) -> Index:
    try:
        return Index.from_json((folder / INDEX).read_bytes())
    except FileNotFoundError as error:
        raise _without_index(folder) from error
    except OSError as error:
        raise StorageFailed(describe(error, folder / INDEX, "read")) from error
    except ValueError as error:
        raise _misfit(folder, error) from error


def _without_index(folder: Path) -> OutputRefused:
    if not (folder / _PICKLED_INDEX).exists():
        return _misfit(folder, f"{INDEX} not found")
    return _misfit(folder, f"its index ({_PICKLED_INDEX}) is a pickle, which this version does not read")


def _read_failure(error: CheckpointException, folder: Path) -> Exception:
    rank, cause = _first(error)
    if isinstance(cause, DamagedFile):
        return DamagedFile(*cause.args)
    if isinstance(cause, OSError):
        return StorageFailed(f"rank {rank}: {describe(cause, folder, 'read')}")
    return _misfit(folder, cause)


def _first(error: CheckpointException) -> tuple[int, BaseException]:
    """The lowest rank that failed, and why; a damaged file is what all need to know."""
    failures = {rank: cause for rank, (cause, _) in error.failures.items()}
    damaged = {rank: cause for rank, cause in failures.items() if isinstance(cause, DamagedFile)}
    return min((damaged or failures).items())


def _misfit(folder: Path, cause: object) -> OutputRefused:
    return OutputRefused(
        f"cannot resume from checkpoint {folder}: {cause}; choose another output, continue with the version of the "
        "trainer that wrote it, or move that checkpoint away to go on from an earlier one"
    )


@contextmanager
def _single_process_allowed() -> Iterator[None]:
    """DCP warns when there is no process group; a run of one process has none and needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


class _StrictPlanner(DefaultLoadPlanner):
    """Reads tensors only, and requires the same names on both sides."""

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        written = self.metadata.state_dict_metadata
        unknown = sorted(written.keys() - self.state_dict.keys())
        if unknown:
            raise ValueError(f"it has tensors that this run does not have: {_names(unknown)}")
        for name, tensor in self.state_dict.items():
            _require_same_dtype(name, tensor, written.get(name))
        return super().create_local_plan()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise ValueError(f"{read_item.dest_index.fqn} is not a tensor")


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _require_same_dtype(name: str, tensor: Any, written: object) -> None:
    assert isinstance(tensor, torch.Tensor), f"{name}: the state of a checkpoint is tensors only"
    if isinstance(written, TensorStorageMetadata) and written.properties.dtype != tensor.dtype:
        raise ValueError(
            f"{name} has dtype {written.properties.dtype} in the checkpoint and {tensor.dtype} in this run"
        )
