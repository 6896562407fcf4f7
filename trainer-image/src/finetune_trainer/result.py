"""The result folder: complete or absent.

<output>/result/ is written as .tmp-result/, flushed, renamed, and marked last, like a checkpoint. A complete result
is never changed: the folder belongs to one run, and a run has one result. A merged model is added in the same way,
under a marker of its own: .tmp-merged/ becomes result/merged/. The result is complete with it and without it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from finetune_api.runtime.protocol import MARKER, MERGED, RESULT

from . import lora_files, merge
from .collectives import on_rank_0, world_size
from .errors import OutputRefused
from .export import ModelCard, Publication, write_result
from .files import DISK, TEMPORARY, Files, fsync_tree, remove_tree, storage_errors
from .marker import (
    DigestingFiles,
    FileDigest,
    Marker,
    defect,
    digests_in,
    publish_folder,
    read_marker,
    write_marker,
)


def publish(output: Path, publication: Publication, files: Files = DISK) -> Path:
    """Make it the result of the run; returns its folder. Collective: rank 0 writes.

    A complete result of this run is kept. Raises StorageFailed on every rank.
    """
    card = publication.card
    final, temporary = output / RESULT, _temporary(output)
    if finished(output, card.digest):
        return final
    on_rank_0(partial(_begin, output, files))
    digesting = DigestingFiles(files)
    write_result(temporary, publication, digesting)
    on_rank_0(partial(_complete, temporary, final, card, digesting.digests, files))
    return final


def add_merged(output: Path, base: Path, files: Files = DISK) -> None:
    """Add the adapter's base, with the adapter merged, to the complete result in `output`, unless it is there.

    Collective: rank 0 reads and writes. Raises StorageFailed, ModelRefused and OutputRefused on every rank.
    """
    on_rank_0(partial(_add_merged, output, base, files))


def finished(output: Path, digest: str) -> Marker | None:
    """The marker of a complete result of the run with this digest, or None. Collective: rank 0 reads the folder."""
    return on_rank_0(partial(_finished, output / RESULT, digest))


def remove_leftovers(output: Path, files: Files = DISK) -> None:
    """Remove what an interrupted publication has written. Raises StorageFailed, and OutputRefused for changes."""
    require_unchanged(output)
    final, temporary = output / RESULT, _temporary(output)
    unmarked = [final] if read_marker(final) is None else []
    with storage_errors(output):
        for folder in (temporary, _temporary_merged(output), *unmarked):
            if os.path.lexists(folder):
                remove_tree(folder, files)


def require_unchanged(output: Path) -> None:
    """Raises OutputRefused for a result that somebody has changed since: a run would write over it."""
    final = output / RESULT
    changed = defect(final) if os.path.lexists(final / MARKER) and not final.is_symlink() else None
    if changed:
        raise OutputRefused(
            f"{final} has changed since it was published: {changed}; restore it, or move it away: the next start "
            "continues from the last checkpoint and publishes again"
        )


def _temporary(output: Path) -> Path:
    return output / f"{TEMPORARY}{RESULT}"


def _temporary_merged(output: Path) -> Path:
    return output / f"{TEMPORARY}{MERGED}"


def _add_merged(output: Path, base: Path, files: Files) -> None:
    final, temporary = output / RESULT, _temporary_merged(output)
    marker, merged = read_marker(final), final / MERGED
    assert marker is not None, "a merged model for no result"
    if os.path.lexists(merged):
        _require_ours(merged, marker)
        return
    with storage_errors(output):
        if os.path.lexists(temporary):
            remove_tree(temporary, files)
        files.folder(temporary)
    digesting = DigestingFiles(files)
    merge.write(temporary, merge.plan(base, lora_files.read(final)), digesting)
    with storage_errors(final):
        own = marker.model_copy(update={"files": digests_in(temporary, digesting.digests)})
        fsync_tree(temporary, files)
        write_marker(temporary, own, files)
        files.rename(temporary, merged)
        files.fsync(final)


def _require_ours(merged: Path, of_result: Marker) -> None:
    found = None if merged.is_symlink() else read_marker(merged)
    if found is None or (found.digest, found.step) != (of_result.digest, of_result.step):
        raise OutputRefused(
            f"output.merge: {merged} is there already, and is not what this run has merged; move it away, or remove "
            "output.merge"
        )


def _begin(output: Path, files: Files) -> None:
    remove_leftovers(output, files)
    with storage_errors(output):
        files.folder(_temporary(output))


def _complete(temporary: Path, final: Path, card: ModelCard, known: Mapping[Path, FileDigest], files: Files) -> None:
    with storage_errors(final):
        digests = digests_in(temporary, known)
        fsync_tree(temporary, files)
        marker = Marker(step=card.step, world_size=world_size(), digest=card.digest, files=digests)
        publish_folder(temporary, final, marker, files)


def _finished(folder: Path, digest: str) -> Marker | None:
    marker = read_marker(folder)
    return marker if marker and marker.digest == digest else None
