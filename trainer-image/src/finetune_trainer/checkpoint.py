"""Checkpoints: valid or absent, whenever a process is killed.

<output>/checkpoints/step-00000020/   shard-00000.bin, ...            tensors, one file a rank (shards.py)
                                      index.json                      where each tensor is in them (index.py)
                                      rank-00000.safetensors, ...     random states, one file a rank (rng.py)
                                      extra.json                      position in the data, best step, ...
                                      COMPLETE                        size and sha256 of each (marker.py)

A save writes into .tmp-step-00000020/, syncs, renames, syncs, and writes the marker last. Pruning removes the
marker first. So at any moment the newest folder with a marker is the latest checkpoint.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from finetune_api.runtime.protocol import CHECKPOINTS, MARKER

from . import rng
from .collectives import gather, new_channel, on_channel, on_every_rank, on_rank_0, rank, world_size
from .errors import StorageFailed
from .files import DISK, TEMPORARY, Files, remove_tree, storage_errors
from .index import INDEX, SHARD
from .marker import DigestingFiles, FileDigest, Marker, defect, digest_of, publish_folder, read_marker
from .shard_files import DamagedFile, WrittenChunk, index_of, write_shard
from .shards import read_kind, read_shards
from .snapshot import RankSnapshot

DAMAGED = "DAMAGED"
"""New name of the marker after a file was found to differ from its digest."""
EXTRA = "extra.json"
_STEP = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


def save(
    output: Path, step: int, snapshot: RankSnapshot, *, keep: int, protect: set[int], files: Files = DISK
) -> None:
    """Save what every rank had after `step` optimizer steps.

    Collective. On return the checkpoint is flushed, and all others are removed except the `keep` newest and the
    steps in `protect`. A valid checkpoint of that step is kept: the same run has the same state at that step.
    Raises StorageFailed on every rank if one cannot write; earlier checkpoints stay valid.
    """
    final = _folder(output, step)
    temporary = final.with_name(TEMPORARY + final.name)
    if not on_rank_0(partial(_begin, final, temporary, files)):
        return
    own: list[RankFiles] = []
    on_every_rank(lambda: own.append(_write_own(temporary, snapshot, files)))
    of_ranks = gather(own[0])
    on_rank_0(lambda: _publish(temporary, final, step, of_ranks, files))
    on_rank_0(partial(_prune, output, step, keep, protect, files))


def latest(output: Path) -> int | None:
    """Step of the newest valid checkpoint. Collective: rank 0 reads the folder. Raises StorageFailed if it cannot."""
    return on_rank_0(lambda: next(_valid_steps(output), None))


def count(output: Path) -> int:
    """How many valid checkpoints there are. Collective, like `latest`."""
    return on_rank_0(lambda: sum(1 for _ in _valid_steps(output)))


def is_valid(output: Path, step: int) -> bool:
    """Whether there is a valid checkpoint of `step`. Collective, like `latest`."""
    return on_rank_0(lambda: read_marker(_folder(output, step)) is not None)


def load(output: Path, step: int, state: dict[str, Any], active: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Fill `state` in place with the checkpoint of `step`, restore random states, and return `extra`.

    Collective. Works on any number of ranks: ranks without a saved random state derive one from rank 0's, with a
    warning. `active` is called for each part that was read. Raises StorageFailed if a file is corrupt; that
    checkpoint is invalid from then on. Raises StorageFailed also if it is not valid any more or cannot be read, and
    OutputRefused if it does not fit `state`, which holds a mixture after an error.
    """
    folder = _folder(output, step)
    with on_channel(new_channel("checkpoint")):  # one rank may be slower than the time-out of another channel
        marker = on_rank_0(partial(_require_valid, folder))
        with _marked_if_damaged(folder):
            _verify(folder, marker)
            read_shards(folder, state, marker.files, active)
        on_every_rank(partial(_restore_rng, folder, marker.world_size))
        return on_rank_0(partial(_read_extra, folder))


def read_part(output: Path, step: int, kind: str, active: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """The tensors of one kind of a checkpoint's state, whole and on the CPU, by name.

    Collective, and with the errors of `load`.
    """
    folder = _folder(output, step)
    with on_channel(new_channel("checkpoint")):
        marker = on_rank_0(partial(_require_valid, folder))
        with _marked_if_damaged(folder):
            _verify(folder, marker)
            return read_kind(folder, kind, marker.files, active)


def remove_leftovers(output: Path, files: Files = DISK) -> None:
    """Remove what is no checkpoint: partly written, partly removed, or damaged. Raises StorageFailed."""
    valid = set(_valid_steps(output))
    with storage_errors(output / CHECKPOINTS):
        _remove_leftovers(output / CHECKPOINTS, files)
        for step in sorted(set(_steps(output)) - valid):
            folder = _folder(output, step)
            why = defect(folder) or "it is that of another step"
            _log.warning("%s is no checkpoint and is removed: %s", folder, why)
            remove_tree(folder, files)


def _remove_leftovers(folder: Path, files: Files) -> None:
    for leftover in sorted(folder.glob(TEMPORARY + "*")):
        remove_tree(leftover, files)


def _folder(output: Path, step: int) -> Path:
    return output / CHECKPOINTS / f"step-{step:08d}"


def _begin(final: Path, temporary: Path, files: Files) -> bool:
    """Remove leftovers of crashes and create the temporary folder; False if the checkpoint exists already."""
    if _marker(final):
        return False
    with storage_errors(temporary):
        if not final.parent.exists():
            files.folder(final.parent)
            files.fsync(final.parent.parent)
        _remove_leftovers(final.parent, files)
        files.folder(temporary)
    return True


@dataclass(frozen=True)
class RankFiles:
    """What a rank has written."""

    digests: dict[str, FileDigest]
    """Of its files, by name."""
    chunks: list[WrittenChunk]


def _write_own(folder: Path, snapshot: RankSnapshot, files: Files) -> RankFiles:
    """Write the files of this rank."""
    digesting = DigestingFiles(files)
    shard = folder / f"shard-{rank():05d}{SHARD}"
    with storage_errors(shard):
        chunks = write_shard(shard, snapshot.pieces, digesting)
    _write(folder / _random_file(rank()), safetensors.torch.save(dict(snapshot.random)), digesting)
    if rank() == 0:
        _write(folder / EXTRA, json.dumps(snapshot.extra, allow_nan=False).encode(), digesting)
    return RankFiles(digesting.by_name, chunks)


def _write(path: Path, content: bytes, files: Files) -> None:
    with storage_errors(path):
        with files.create(path) as sink:
            sink.write(content)
        files.fsync(path)


def _random_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _publish(temporary: Path, final: Path, step: int, of_ranks: list[RankFiles], files: Files) -> None:
    """Write the index, and make the checkpoint valid."""
    digesting = DigestingFiles(files)
    _write(temporary / INDEX, index_of(chunk for each in of_ranks for chunk in each.chunks).to_json(), digesting)
    digests = {name: digest for each in of_ranks for name, digest in each.digests.items()}
    marker = Marker(step=step, world_size=world_size(), files=digests | digesting.by_name)
    with storage_errors(final):
        _require_shared(temporary, marker)
        publish_folder(temporary, final, marker, files)


def _require_shared(folder: Path, marker: Marker) -> None:
    """Fail if rank 0 does not see the files of the other ranks: then their output is not shared storage."""
    missing = [name for name in marker.files if not (folder / name).exists()]
    if missing:
        raise StorageFailed(
            f"{folder / missing[0]} was written by another rank but is not visible to rank 0; "
            "use an output volume that all nodes share (ReadWriteMany)"
        )


def _prune(output: Path, published: int, keep: int, protect: set[int], files: Files) -> None:
    """Remove old checkpoints and invalid folders: partly removed, partly written, or damaged.

    The one just `published` stays, even if the volume does not show its files yet.
    """
    valid = list(_valid_steps(output))
    kept = {published, *valid[:keep]} | (protect & set(valid))
    for step in sorted(set(_steps(output)) - kept):
        folder = _folder(output, step)
        with storage_errors(folder):
            if (folder / MARKER).exists() and not folder.is_symlink():
                files.remove(folder / MARKER)
                files.fsync(folder)
            remove_tree(folder, files)


def _steps(output: Path) -> list[int]:
    folder = output / CHECKPOINTS
    with storage_errors(folder, "read"):
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    steps = (int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
    return sorted((step for step in steps if _folder(output, step).name in names), reverse=True)


def _valid_steps(output: Path) -> Iterator[int]:
    """Steps with a valid checkpoint, newest first."""
    return (step for step in _steps(output) if _marker(_folder(output, step)))


def _marker(folder: Path) -> Marker | None:
    """Of a valid checkpoint. A copy under the name of another step is none."""
    marker = read_marker(folder)
    return marker if marker and folder == _folder(folder.parents[1], marker.step) else None


def _require_valid(folder: Path) -> Marker:
    marker = _marker(folder)
    if marker is None:
        raise StorageFailed(
            f"{folder} is not a valid checkpoint any more: files were removed or changed; "
            "the next start does without it; check the output volume"
        )
    return marker


def _verify(folder: Path, marker: Marker) -> None:
    """Compare the files that are not tensors with their digests; each rank reads a part of them."""
    mine = sorted(name for name in marker.files if not name.endswith(SHARD))[rank() :: world_size()]
    findings = on_every_rank(lambda: [name for name in mine if _differs(folder / name, marker.files[name])])
    for damaged in chain.from_iterable(findings):
        raise DamagedFile(damaged)


def _differs(path: Path, expected: FileDigest) -> bool:
    with storage_errors(path, "read"):
        return not path.exists() or digest_of(path) != expected


@contextmanager
def _marked_if_damaged(folder: Path) -> Iterator[None]:
    """A checkpoint with a damaged file is no checkpoint any more. Raises StorageFailed. Collective."""
    try:
        yield
    except DamagedFile as damaged:
        on_rank_0(partial(_mark_damaged, folder))
        raise StorageFailed(
            f"{folder / str(damaged)} is corrupt (its sha256 differs from the marker); the next start does without "
            "that checkpoint; check the output volume"
        ) from damaged


def _mark_damaged(folder: Path) -> None:
    with storage_errors(folder):
        if folder.is_symlink():  # what it leads to belongs to others
            DISK.remove(folder)
            DISK.fsync(folder.parent)
        else:
            DISK.rename(folder / MARKER, folder / DAMAGED)
            DISK.fsync(folder)


def _restore_rng(folder: Path, saved: int) -> None:
    if saved != world_size() and rank() == 0:
        _log.warning(
            "checkpoint %s was written by %d ranks and is resumed by %d: the row order is the same, but dropout "
            "masks differ; ranks from %d on derive their random state from rank 0",
            folder.name, saved, world_size(), saved,
        )  # fmt: skip
    with storage_errors(folder, "read"):
        state = safetensors.torch.load_file(folder / _random_file(rank() if rank() < saved else 0))
    if rank() < saved:
        rng.restore(state)
    else:
        rng.derive(state, rank())


def _read_extra(folder: Path) -> dict[str, Any]:
    with storage_errors(folder / EXTRA, "read"):
        extra = json.loads((folder / EXTRA).read_bytes())
    assert isinstance(extra, dict)
    return extra
