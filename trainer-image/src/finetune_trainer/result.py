"""The result folder: complete or absent.

<output>/result/ is written as .tmp-result/, flushed, renamed, and marked last, like a checkpoint. A complete result
is never changed: the folder belongs to one run, and a run has one result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from finetune_api.runtime.protocol import RESULT

from .collectives import on_rank_0, world_size
from .errors import StorageFailed
from .export import ModelCard, write_result
from .files import DISK, TEMPORARY, Files, fsync_tree, remove_tree, storage_errors
from .marker import Marker, digest_of, publish_folder, read_marker


def publish(
    output: Path,
    model: PreTrainedModel | PeftModel,
    state: Mapping[str, Tensor],
    base: Path,
    card: ModelCard,
    files: Files = DISK,
) -> Path:
    """Make `state` the result of the run; returns its folder. Collective: rank 0 writes.

    A PeftModel becomes a PEFT adapter, any other model a Hugging Face folder. `state` holds the trained
    tensors by their names in `model`, unsharded and on the CPU (export.gather); ranks other than 0 may pass {}.
    `base` is the folder the base model was loaded from. A complete result of this run is kept. Raises
    StorageFailed on every rank.
    """

    def write(folder: Path) -> None:
        write_result(folder, model, state, base, card)

    return on_rank_0(partial(_publish, output, write, card, files))


def finished(output: Path, digest: str) -> Marker | None:
    """The marker of a complete result of the run with this digest, or None. Collective: rank 0 reads the folder."""
    return on_rank_0(partial(_finished, output / RESULT, digest))


def _publish(output: Path, write: Callable[[Path], None], card: ModelCard, files: Files) -> Path:
    final = output / RESULT
    if _finished(final, card.digest):
        return final
    temporary = output / f"{TEMPORARY}{RESULT}"
    with storage_errors(final):
        if temporary.exists():
            remove_tree(temporary, files)
        files.folder(temporary)
        _fill(temporary, write)
        digests = {
            str(path.relative_to(temporary)): digest_of(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        fsync_tree(temporary, files)
        marker = Marker(step=card.step, world_size=world_size(), digest=card.digest, files=digests)
        publish_folder(temporary, final, marker, files)
    return final


def _finished(folder: Path, digest: str) -> Marker | None:
    marker = read_marker(folder)
    return marker if marker and marker.digest == digest else None


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    try:
        write(folder)
    except SafetensorError as error:  # safetensors raises this when the disk is full
        raise StorageFailed(f"cannot write {folder}: {error}; free space on the output volume") from error
