"""Read a dataset file into rows, and refuse it by the policy of the job.

Called by the CLI and the trainer.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from finetune_api.runtime.choices import OnBadRow

from . import formats, jsonl
from .problems import BadRow, DatasetRefused, Problems
from .rows import Dataset, Row


def read(
    path: str | Path,
    *,
    on_bad_row: OnBadRow = OnBadRow.REFUSE,
    max_bad_share: float = 0.0,
    examples: int | None = None,
) -> Dataset:
    """The dataset in the JSON Lines file `path`, or its first `examples` rows, good and bad.

    Raises DatasetRefused if the file is missing, unreadable or empty, and, with the bad rows by line, if it
    has more of them than `on_bad_row` and `max_bad_share` (a fraction of the rows seen) allow.
    """
    rows: list[Row] = []
    problems, ignored = Problems(), Counter[str]()
    try:
        for line, record in islice(jsonl.records(Path(path)), examples):
            _take(line, record, rows, problems, ignored)
    except OSError as error:
        raise _unreadable(str(path), error) from None
    seen = len(rows) + problems.count
    if not seen:
        raise DatasetRefused(str(path), "the file contains no rows", f"To train on it, {jsonl.ONE_A_LINE}.")
    problems.judge(str(path), seen, on_bad_row, max_bad_share)
    return Dataset(str(path), tuple(rows), seen, problems.shown, problems.count, dict(ignored))


def _take(
    line: int,
    record: jsonl.Record | BadRow,
    rows: list[Row],
    problems: Problems,
    ignored: Counter[str],
) -> None:
    try:
        if isinstance(record, BadRow):
            raise record
        rows.append(formats.parse(line, record, ignored))
    except BadRow as problem:
        problems.add(line, problem)


def _unreadable(path: str, error: OSError) -> DatasetRefused:
    if isinstance(error, FileNotFoundError):
        return DatasetRefused(path, "there is no such file", "Correct the path of the dataset.")
    if isinstance(error, IsADirectoryError):
        return DatasetRefused(path, "this is a folder, not a file", "Name the JSON Lines file in it.")
    return DatasetRefused(path, f"cannot be read: {error.strerror}", "Make the file readable.")
