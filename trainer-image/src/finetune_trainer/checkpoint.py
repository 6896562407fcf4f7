"""Checkpoints that are valid or absent, whatever is killed when.

<output>/checkpoints/step-00000020/   shard-00000.bin, ...            tensors, one file a rank (shards.py)
                                      index.json                      where each tensor is in them (index.py)
                                      rank-00000.safetensors, ...     random states, one file a rank (rng.py)
                                      extra.json                      position in the data, best step, ...
                                      COMPLETE                        size and sha256 of each (marker.py)

A save writes into .tmp-step-00000020/, syncs, renames, syncs, and writes the marker last. Pruning removes the
marker first. So the newest folder with a marker is the last checkpoint at any moment.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch

from finetune_api.runtime.protocol import CHECKPOINTS, MARKER

from . import rng
from .agreement import every_rank, first_rank, rank, world_size
from .errors import StorageFailed
from .files import DISK, TEMPORARY, Files, remove_tree, storage_errors
from .marker import Marker, Recorder, Stamp, put_in_place, read_marker, stamp
from .shards import read_shards, write_shards

DAMAGED = "DAMAGED"
"""What the marker is called once a file was found to differ from it."""
EXTRA = "extra.json"
_STEP = re.compile(r"step-(\d{8,})")
_log = logging.getLogger(__name__)


def save(  # noqa: PLR0913 - the first four are the checkpoint; the keywords are how it is kept
    output: Path,
    step: int,
    state: dict[str, Any],
    extra: Mapping[str, Any],
    *,
    keep: int,
    protect: set[int],
    files: Files = DISK,
) -> None:
    """Save `state` (nested dict of tensors or DTensors) and `extra` (JSON) as of `step` optimizer steps.

    Collective. On return the checkpoint is on the disk and all but the `keep` newest and the steps of
    `protect` are gone. A valid checkpoint of that step stays as it is: the same run has the same state there.
    Raises StorageFailed on every rank if one cannot write; the checkpoints before it are still valid then.
    """
    final = _folder(output, step)
    temporary = final.with_name(TEMPORARY + final.name)
    if not first_rank(partial(_begin, final, temporary, files)):
        return
    recorder = Recorder(files)
    write_shards(temporary, state, recorder)
    stamps = every_rank(partial(_write_own, temporary, extra, recorder))
    marker = Marker(step=step, world_size=world_size(), files=_by_name(stamps))
    first_rank(partial(_publish, temporary, final, marker, files))
    first_rank(partial(_prune, output, keep, protect, files))


def latest(output: Path) -> int | None:
    """Step of the newest valid checkpoint. Collective: rank 0 looks."""
    return first_rank(lambda: next(_valid_steps(output), None))


def load(output: Path, step: int, state: dict[str, Any]) -> dict[str, Any]:
    """Fill `state` in place with the checkpoint of `step`, restore random states, and return `extra`.

    Collective. Works on any number of ranks: those that the checkpoint does not know get random states of
    their own, derived from rank 0's, and the log says so. Raises StorageFailed if a file is not what was
    written; that checkpoint does not count from then on. Raises OutputRefused if it does not fit `state`.
    """
    folder = _folder(output, step)
    marker = first_rank(lambda: read_marker(folder))
    assert marker is not None, f"{folder} is not a valid checkpoint; ask latest() first"
    _verify(folder, marker)
    read_shards(folder, state)
    every_rank(partial(_restore_random, folder, marker.world_size))
    return first_rank(partial(_read_extra, folder))


def _folder(output: Path, step: int) -> Path:
    return output / CHECKPOINTS / f"step-{step:08d}"


def _begin(final: Path, temporary: Path, files: Files) -> bool:
    """Clear what crashes have left and make the folder to write into; False if there is nothing to do."""
    if read_marker(final):
        return False
    with storage_errors(temporary):
        if not final.parent.exists():
            files.folder(final.parent)
            files.fsync(final.parent.parent)
        for leftover in sorted(final.parent.glob(TEMPORARY + "*")):
            remove_tree(leftover, files)
        files.folder(temporary)
    return True


def _write_own(folder: Path, extra: Mapping[str, Any], files: Recorder) -> dict[str, Stamp]:
    """Write what is this rank's alone; return the stamps of all that it has written, shards included."""
    _write(folder / _random_file(rank()), safetensors.torch.save(rng.capture()), files)
    if rank() == 0:
        _write(folder / EXTRA, json.dumps(extra, allow_nan=False).encode(), files)
    return {path.name: stamp for path, stamp in files.stamps.items()}


def _write(path: Path, content: bytes, files: Files) -> None:
    with storage_errors(path):
        with files.create(path) as sink:
            sink.write(content)
        files.fsync(path)


def _random_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _by_name(stamps: list[dict[str, Stamp]]) -> dict[str, Stamp]:
    return {name: stamp for of_rank in stamps for name, stamp in sorted(of_rank.items())}


def _publish(temporary: Path, final: Path, marker: Marker, files: Files) -> None:
    with storage_errors(final):
        _require_shared(temporary, marker)
        put_in_place(temporary, final, marker, files)


def _require_shared(folder: Path, marker: Marker) -> None:
    """Rank 0 sees what the others wrote, or they write to folders of their own that only look the same."""
    missing = [name for name in marker.files if not (folder / name).exists()]
    if missing:
        raise StorageFailed(
            f"{folder / missing[0]} was written by another rank and is not there for rank 0; "
            "give the job an output volume that all nodes share (ReadWriteMany)"
        )


def _prune(output: Path, keep: int, protect: set[int], files: Files) -> None:
    """Remove what is too old, and folders that do not count: half-removed, half-written, damaged."""
    valid = list(_valid_steps(output))
    stay = set(valid[:keep]) | (protect & set(valid))
    for step in sorted(set(_steps(output)) - stay):
        folder = _folder(output, step)
        with storage_errors(folder):
            if (folder / MARKER).exists():
                files.remove(folder / MARKER)
                files.fsync(folder)
            remove_tree(folder, files)


def _steps(output: Path) -> list[int]:
    folder = output / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted((int(match[1]) for name in names if (match := _STEP.fullmatch(name))), reverse=True)


def _valid_steps(output: Path) -> Iterator[int]:
    """Steps with a valid checkpoint, newest first."""
    return (step for step in _steps(output) if read_marker(_folder(output, step)))


def _verify(folder: Path, marker: Marker) -> None:
    """Compare every file with its stamp; the ranks share the reading."""
    mine = sorted(marker.files)[rank() :: world_size()]
    findings = every_rank(lambda: [name for name in mine if _differs(folder / name, marker.files[name])])
    damaged = [name for of_rank in findings for name in of_rank]
    if damaged:
        first_rank(partial(_set_aside, folder))
        raise StorageFailed(
            f"{folder / damaged[0]} is not what was written (its sha256 differs); the checkpoint is set "
            "aside and the next start continues from the one before it; check the output volume"
        )


def _differs(path: Path, expected: Stamp) -> bool:
    try:
        return stamp(path) != expected
    except OSError:
        return True


def _set_aside(folder: Path) -> None:
    with storage_errors(folder):
        DISK.rename(folder / MARKER, folder / DAMAGED)
        DISK.fsync(folder)


def _restore_random(folder: Path, saved: int) -> None:
    if saved != world_size() and rank() == 0:
        _log.warning(
            "checkpoint %s was written by %d ranks and is continued by %d: row order stays, but dropout "
            "draws other numbers; ranks beyond the first %d derive their random state from rank 0's",
            folder.name, saved, world_size(), saved,
        )  # fmt: skip
    if rank() < saved:
        rng.restore(safetensors.torch.load_file(folder / _random_file(rank())))
    else:
        rng.derive(safetensors.torch.load_file(folder / _random_file(0)), rank())


def _read_extra(folder: Path) -> dict[str, Any]:
    extra = json.loads((folder / EXTRA).read_bytes())
    assert isinstance(extra, dict)
    return extra
