"""Reading a file: lines, numbers, and the policy for bad rows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from finetune_api.runtime.choices import OnBadRow
from finetune_data import DatasetRefused, read

GOOD = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}'
BAD = '{"messages": []}'
EMPTY = "messages is empty; write the conversation, or remove the row"


def written(folder: Path, *lines: str) -> Path:
    file = folder / "rows.jsonl"
    file.write_bytes("\n".join(lines).encode())
    return file


def refusal(file: Path, **options: object) -> str:
    with pytest.raises(DatasetRefused) as refused:
        read(file, **options)  # type: ignore[arg-type]
    return str(refused.value).replace(str(file), "FILE")


def test_blank_lines_are_skipped_and_still_counted_as_lines(tmp_path: Path) -> None:
    dataset = read(written(tmp_path, "", GOOD, "  ", "\t", GOOD, ""))
    assert [row.line for row in dataset.rows] == [2, 5]
    assert dataset.row_count == 2


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(tmp_path: Path) -> None:
    dataset = read(written(tmp_path, "\ufeff" + GOOD + "\r", GOOD + "\r", ""))
    assert [row.line for row in dataset.rows] == [1, 2]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    dataset = read(written(tmp_path, GOOD.replace("yes", "a\u2028b\u0085c"), GOOD))
    assert dataset.rows[0].messages[1].content == "a\u2028b\u0085c"
    assert len(dataset.rows) == 2


@pytest.mark.parametrize(
    "content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "a byte order mark"]
)
def test_a_file_without_rows_has_its_own_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    assert refusal(file) == (
        "FILE: the file contains no rows\nWrite one JSON object per line: "
        '{"messages": [...]} or {"messages": [...], "response": "..."}.'
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.jsonl") == ("FILE: file not found\nCorrect the path of the dataset.")


def test_a_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "FILE: this is a folder, not a file\nUse the path of the JSON Lines file in it."


@pytest.mark.parametrize("kind", ["a pipe", "a pipe with rows", "a link to a device", "a socket"])
def test_rows_that_can_be_read_only_once_are_refused_and_nothing_waits_for_them(tmp_path: Path, kind: str) -> None:
    """They are read twice: when the job is checked, and by the trainer, which lacks the descriptors of a shell."""
    file = tmp_path / "rows.jsonl"
    with ExitStack() as stack:
        if kind == "a pipe":
            os.mkfifo(file)
        elif kind == "a pipe with rows":  # as a shell's <(head -100 all.jsonl)
            reading, writing = os.pipe()
            stack.callback(os.close, reading)
            os.write(writing, GOOD.encode())
            os.close(writing)
            file.symlink_to(f"/dev/fd/{reading}")
        elif kind == "a link to a device":
            file.symlink_to("/dev/zero")
        else:
            stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(file))
        assert refusal(file) == (
            "FILE: this is a pipe or a device, not a file\n"
            "Rows are read more than once: write them to a file, and name that."
        )


def test_a_path_through_a_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD) / "rows.jsonl"
    assert refusal(file) == "FILE: cannot be read: Not a directory\nMake the file readable."


def test_a_bad_row_refuses_the_file_by_default(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, GOOD, BAD, GOOD)) == (
        f"FILE: 1 of 3 rows is bad\n  line 2: {EMPTY}\n"
        "Fix the rows, or set data.on_bad_row: skip to train without them."
    )


def test_at_most_twenty_bad_rows_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    lines = refusal(written(tmp_path, GOOD, *[BAD] * 25)).splitlines()
    assert lines[0] == "FILE: 25 of 26 rows are bad"
    assert lines[1:21] == [f"  line {n}: {EMPTY}" for n in range(2, 22)]
    assert lines[21:] == [
        "  and 5 more",
        "Fix the rows, or set data.on_bad_row: skip to train without them.",
    ]


def test_bad_rows_up_to_the_allowed_share_are_skipped_named_and_counted(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, BAD, GOOD, GOOD)
    dataset = read(file, on_bad_row=OnBadRow.SKIP, max_bad_share=0.25)
    assert [row.line for row in dataset.rows] == [1, 3, 4]
    assert [str(problem) for problem in dataset.problems] == [f"line 2: {EMPTY}"]
    assert (dataset.row_count, dataset.problem_count) == (4, 1)


def test_more_bad_rows_than_the_allowed_share_refuse_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, BAD, GOOD, GOOD)
    assert refusal(file, on_bad_row=OnBadRow.SKIP, max_bad_share=0.2) == (
        f"FILE: 1 of 4 rows is bad, more than data.max_bad_share: 0.2 allows\n  line 2: {EMPTY}\n"
        "Fix the rows, or raise data.max_bad_share."
    )


def test_a_file_of_bad_rows_only_is_refused_even_if_any_share_is_allowed(tmp_path: Path) -> None:
    file = written(tmp_path, BAD, BAD)
    first = refusal(file, on_bad_row=OnBadRow.SKIP, max_bad_share=1.0).splitlines()[0]
    assert first == "FILE: all of the 2 rows are bad: no row is left to train on"


def test_only_the_first_examples_are_read(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD, "", GOOD, BAD)
    dataset = read(file, examples=2)
    assert [row.line for row in dataset.rows] == [1, 3]
    with pytest.raises(DatasetRefused):
        read(file, examples=3)


def test_reading_rows_needs_no_tokenizer_and_no_torch() -> None:
    program = "import sys, finetune_data; print([m for m in ('torch', 'tokenizers', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
