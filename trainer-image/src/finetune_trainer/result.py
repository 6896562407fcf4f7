"""The result folder: complete or not there, and the older one stays until the new one is.

<output>/result/ is written as .tmp-result/, synced, renamed, and marked last, like a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.output import RESULT

from .agreement import first_rank, world_size
from .errors import StorageFailed
from .export import Card, write_result
from .files import DISK, TEMPORARY, Files, fsync_tree, remove_tree, storage_errors
from .marker import Marker, read_marker, stamp, write_marker


def publish(
    output: Path,
    model: PreTrainedModel | PeftModel,
    state: Mapping[str, Tensor],
    base: Path,
    card: Card,
    files: Files = DISK,
) -> Path:
    """Make `state` the result of the run; returns its folder. Collective: rank 0 writes.

    A PeftModel becomes a PEFT adapter, any other model a Hugging Face folder. `state` holds the trained
    tensors by their names in `model`, whole and on the CPU (export.gather); ranks other than 0 may pass {}.
    `base` is the folder the base model was loaded from. Raises StorageFailed on every rank.
    """

    def write(folder: Path) -> None:
        write_result(folder, model, state, base, card)

    return first_rank(partial(_publish, output, write, card, files))


def finished(output: Path, digest: str) -> Marker | None:
    """The marker of a complete result of the run with this digest, or None. Collective: rank 0 looks."""
    marker = first_rank(lambda: read_marker(output / RESULT))
    return marker if marker and marker.digest == digest else None


def _publish(output: Path, write: Callable[[Path], None], card: Card, files: Files) -> Path:
    final = output / RESULT
    temporary, old = (output / f"{TEMPORARY}{name}" for name in (RESULT, f"old-{RESULT}"))
    with storage_errors(final):
        _tidy(final, temporary, old, files)
        files.folder(temporary)
        _fill(temporary, write)
        stamps = {path.name: stamp(path) for path in sorted(temporary.iterdir()) if path.is_file()}
        fsync_tree(temporary, files)
        if final.exists():
            files.rename(final, old)
        files.rename(temporary, final)
        files.fsync(output)
        marker = Marker(step=card.step, world_size=world_size(), digest=card.digest, files=stamps)
        write_marker(final, marker, files)
        if old.exists():
            remove_tree(old, files)
    return final


def _tidy(final: Path, temporary: Path, old: Path, files: Files) -> None:
    """Clear what a crash has left; an older result that was moved aside for nothing moves back."""
    if read_marker(old) and not read_marker(final):
        if final.exists():
            remove_tree(final, files)
        files.rename(old, final)
    for leftover in (temporary, old):
        if leftover.exists():
            remove_tree(leftover, files)


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    try:
        write(folder)
    except SafetensorError as error:  # how a full disk reads when safetensors meets it
        raise StorageFailed(f"cannot write {folder}: {error}; free space on the output volume") from error
