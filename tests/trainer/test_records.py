"""Records in the output's file: one a line, whatever happened to the line before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.runtime.report import CheckpointRecord, parse
from finetune_trainer.errors import StorageFailed
from finetune_trainer.records import RecordWriter

FIRST, SECOND = (CheckpointRecord(time=1.0, step=step, seconds=1.0) for step in (1, 2))
CUT = '{"record":"progress","time":17'


@pytest.mark.parametrize(
    ("before", "found"),
    [
        pytest.param("", [SECOND], id="a new file"),
        pytest.param(f"{FIRST.line()}\n", [FIRST, SECOND], id="a whole line"),
        pytest.param(f"{FIRST.line()}\n{CUT}", [FIRST, None, SECOND], id="a line that a kill or a full volume cut"),
        pytest.param(FIRST.line(), [FIRST, SECOND], id="a line of which only the end is missing"),
    ],
)
def test_a_record_begins_on_a_line_of_its_own(tmp_path: Path, before: str, found: list[object]) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(before)
    RecordWriter(tmp_path, enabled=True)(SECOND)
    assert [parse(line) for line in path.read_text().splitlines()] == found


@pytest.mark.parametrize(("put", "why"), [("link", "Is a link"), ("pipe", "Is not a regular file")])
def test_what_is_no_file_of_records_is_refused(tmp_path: Path, put: str, why: str) -> None:
    path = tmp_path / "records.jsonl"
    if put == "link":
        path.symlink_to(tmp_path / "theirs")
    else:
        os.mkfifo(path)
    with pytest.raises(StorageFailed, match=f"{why}; remove it"):
        RecordWriter(tmp_path, enabled=True)(FIRST)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("name", ["print_error", "print_lines"])
def test_what_nobody_reads_any_more_ends_nothing(name: str) -> None:
    code = f"from finetune_trainer.records import {name} as tell\nfor _ in range(3): tell('x')\nprint('done')"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stderr=writer, stdout=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "done\n")
