"""The result folder: complete or absent.

<output>/result/ is written as .tmp-result/, flushed, renamed, and marked last, like a checkpoint. A complete result
is never changed: the folder belongs to one run, and a run has one result.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from finetune_api.runtime.protocol import MARKER, RESULT

from .collectives import on_rank_0, world_size
from .errors import OutputRefused
from .export import ModelCard, Publication, write_result
from .files import DISK, TEMPORARY, Files, fsync_tree, remove_tree, storage_errors
from .marker import DigestingFiles, FileDigest, Marker, defect, digest_of, publish_folder, read_marker


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


def finished(output: Path, digest: str) -> Marker | None:
    """The marker of a complete result of the run with this digest, or None. Collective: rank 0 reads the folder."""
    return on_rank_0(partial(_finished, output / RESULT, digest))


def remove_leftovers(output: Path, files: Files = DISK) -> None:
    """Remove what an interrupted publication has written. Raises StorageFailed, and OutputRefused for changes."""
    require_unchanged(output)
    final, temporary = output / RESULT, _temporary(output)
    unmarked = [final] if read_marker(final) is None else []
    with storage_errors(output):
        for folder in (temporary, *unmarked):
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


def _begin(output: Path, files: Files) -> None:
    remove_leftovers(output, files)
    with storage_errors(output):
        files.folder(_temporary(output))


def _complete(temporary: Path, final: Path, card: ModelCard, known: Mapping[Path, FileDigest], files: Files) -> None:
    """`known`: digests of what was written by us; the rest is read."""
    with storage_errors(final):
        found = sorted(path for path in temporary.rglob("*") if path.is_file())
        digests = {str(path.relative_to(temporary)): known.get(path) or digest_of(path) for path in found}
        fsync_tree(temporary, files)
        marker = Marker(step=card.step, world_size=world_size(), digest=card.digest, files=digests)
        publish_folder(temporary, final, marker, files)


def _finished(folder: Path, digest: str) -> Marker | None:
    marker = read_marker(folder)
    return marker if marker and marker.digest == digest else None
