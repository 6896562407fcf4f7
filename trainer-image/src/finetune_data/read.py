"""Read a dataset file into rows, and apply the job's policy for bad rows.

Called by the CLI and the trainer.
"""

from __future__ import annotations

import errno
from collections import Counter
from itertools import islice
from pathlib import Path

from finetune_api.runtime.choices import OnBadRow

from . import formats, jsonl
from .problems import DatasetRefused, InvalidRow, Problems
from .rows import Dataset, Row


def read(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = OnBadRow.REFUSE,
    max_bad_share: float = 0.0,
    examples: int | None = None,
) -> Dataset:
    """The dataset in the JSON Lines file `path`, or its first `examples` rows, bad ones included.

    Raises DatasetRefused if the file is missing, unreadable, empty or no regular file, or if it has more bad rows
    than `on_bad_row` and `max_bad_share` (a fraction of the rows read) allow.
    """
    rows: list[Row] = []
    problems, ignored = Problems(), Counter[str]()
    try:
        for line, record in islice(jsonl.records(Path(path)), examples):
            _add_row(line, record, rows, problems, ignored)
    except OSError as error:
        raise _unreadable(str(path), error) from None
    row_count = len(rows) + problems.count
    if not row_count:
        raise DatasetRefused(
            str(path), "the file contains no rows", f"Write one JSON object per line: {formats.examples()}."
        )
    problems.enforce(str(path), row_count, on_bad_row, max_bad_share)
    return Dataset(str(path), tuple(rows), row_count, problems.first, problems.count, dict(ignored))


def _add_row(
    line: int,
    record: jsonl.Record | InvalidRow,
    rows: list[Row],
    problems: Problems,
    ignored: Counter[str],
) -> None:
    try:
        if isinstance(record, InvalidRow):
            raise record
        rows.append(formats.parse(line, record, ignored))
    except InvalidRow as problem:
        problems.add(line, problem)


def _unreadable(path: str, error: OSError) -> DatasetRefused:
    if isinstance(error, FileNotFoundError):
        return DatasetRefused(path, "file not found", "Correct the path of the dataset.")
    if isinstance(error, IsADirectoryError):
        return DatasetRefused(path, "this is a folder, not a file", "Use the path of the JSON Lines file in it.")
    if error.errno == errno.ENXIO:  # of regular.opened, and of open(2) for a socket
        remedy = "Rows are read more than once: write them to a file, and name that."
        return DatasetRefused(path, "this is a pipe or a device, not a file", remedy)
    return DatasetRefused(path, f"cannot be read: {error.strerror}", "Make the file readable.")
