"""The program of `finetune merge`: `python -m finetune_trainer.merging ADAPTER OUTPUT [BASE]`.

Prints lines of finetune_api.runtime.merging. The folder OUTPUT is complete or absent: it is written beside its place,
flushed, and renamed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from finetune_api.runtime.exits import MEANINGS, Exit
from finetune_api.runtime.merging import MergeOutcome, MergeProgress

from . import (
    adapter_folder,
    failures,
    fingerprint,
    imports,  # noqa: F401 - for its effect on the next
    lora_files,
    merge,
    records,
    sources,
    vocabulary,
)
from .errors import ModelRefused, OutputRefused, SourceUnavailable
from .files import DISK, TEMPORARY, Files, fsync_tree, remove_tree, storage_errors
from .lora_files import SavedAdapter
from .marker import DigestingFiles, Marker, digests_in, read_marker, write_marker
from .merge import MergePlan, OnProgress

_TEMPORARY = f"{TEMPORARY}merge-"
"""Not the prefix of a run's folders, which that removes."""
_WITHOUT_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    adapter, output, *base = arguments
    try:
        outcome = run(Path(adapter), Path(output), base[0] if base else "")
    except Exception as error:  # noqa: BLE001 - top level: every failure becomes an outcome
        if trace := failures.trace(error):
            records.print_error(trace)
        report = failures.report(error, rank=0, node=0, step=0)
        outcome = MergeOutcome(exit_code=report.exit_code, reason=report.reason, message=report.message)
    records.print_line(outcome.model_dump_json())
    return outcome.exit_code


def run(adapter: Path, output: Path, base: str = "", files: Files = DISK) -> MergeOutcome:
    """Merge the adapter in a folder into its base, or into another copy of that. Raises a RunError."""
    _require_absent(output)
    folder = adapter_folder.located(adapter)
    found = lora_files.read(folder)
    of = _base(found, base)
    _compare_base(found, of, given=bool(base))
    with vocabulary.with_rows(of, merge.rows_needed(found, of, vocabulary.size(of) or 0)) as grown:
        try:
            planned = merge.plan(grown, found)
        except ModelRefused as error:
            raise ModelRefused(str(error).replace(str(grown), str(of))) from error
        return _merged(planned, of, output, files)


def _merged(planned: MergePlan, base: Path, output: Path, files: Files) -> MergeOutcome:
    total, done = planned.size, 0

    def on_progress(written: int) -> None:
        nonlocal done
        done += written
        records.print_line(MergeProgress(done=done, total=total).model_dump_json())

    publish(output, planned, files, on_progress)
    return MergeOutcome(
        exit_code=Exit.OK, reason=MEANINGS[Exit.OK].reason, message=MEANINGS[Exit.OK].sentence,
        adapter=str(planned.adapter.folder), base=str(base),
        layers=len(planned.adapter.layers) + len(planned.adapter.parameters), bytes=total,
    )  # fmt: skip


def _base(adapter: SavedAdapter, given: str) -> Path:
    """The folder of the base, downloaded if it is a model of the Hub."""
    if not given and not adapter.base:
        raise ModelRefused(
            f"adapter {adapter.folder} does not name its base; give --base with the folder of that model"
        )
    try:
        return sources.model_folder(given or adapter.base)
    except (ModelRefused, SourceUnavailable) as error:
        if given:
            raise
        raise type(error)(
            f"adapter {adapter.folder} was trained on {adapter.base}, which cannot be read here: {error}. Give "
            "--base with a folder of that model"
        ) from error


def _compare_base(adapter: SavedAdapter, base: Path, *, given: bool) -> None:
    """With that of the run whose output the adapter is in; of a copy of its result nothing is known.

    Raises ModelRefused for another one. One that was given is reported: it may be another copy of the same weights.
    """
    folder = adapter.folder
    trained = adapter_folder.trained_on(folder)
    if trained is None or fingerprint.model_has(base, trained):
        return
    sentence = f"{base} is not, file by file, the base that {folder} was trained on"
    if not given:
        raise ModelRefused(
            f"{sentence}: its content has changed since; restore it, or give --base with the right one"
        )
    records.print_error(f"note: {sentence}; the merged model is right only if its weights are the same")


def publish(output: Path, planned: MergePlan, files: Files, on_progress: OnProgress) -> None:
    """Write the merged model into the folder `output`, which appears when it is complete. Raises a RunError."""
    with storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with _own_folder(output, files) as temporary:
        digesting = DigestingFiles(files)
        merge.write(temporary, planned, digesting, on_progress)
        known = read_marker(planned.adapter.folder)
        with storage_errors(output):
            digests = digests_in(temporary, digesting.digests)
            step, digest = (known.step, known.digest) if known else (0, "")
            fsync_tree(temporary, files)
            write_marker(temporary, Marker(step=step, world_size=1, digest=digest, files=digests), files)
            _require_absent(output)
            files.rename(temporary, output)
            files.fsync(output.parent)


@contextmanager
def _own_folder(output: Path, files: Files) -> Iterator[Path]:
    """An empty folder beside `output`, which no other process writes to; removed if the context ends early."""
    temporary = output.with_name(f"{_TEMPORARY}{output.name}")
    with storage_errors(temporary):
        if not temporary.is_dir() or temporary.is_symlink():
            files.folder(temporary)
        lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            what = f"another process is writing {output}; wait for it, or choose another folder"
            raise OutputRefused(what) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        with storage_errors(temporary):
            for left in sorted(temporary.iterdir()):
                remove_tree(left, files)
        try:
            yield temporary
        finally:
            if temporary.is_dir():
                remove_tree(temporary, files)
    finally:
        os.close(lock)


def _require_absent(output: Path) -> None:
    if os.path.lexists(output):
        raise OutputRefused(f"{output} already exists; give --output with a new folder")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
