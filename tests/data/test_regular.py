"""Files that may have been replaced: what is no regular file is named, and nothing waits or writes elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_data import regular


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.symlink_to(path.parent / "theirs")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("put", "mode", "why"),
    [
        (pipe, "rb", "Is not a regular file"),
        (pipe, "wb", "Is a pipe"),
        (pipe, "a", "Is a pipe"),
        (pipe, "a+b", "Is not a regular file"),
        (folder, "rb", "Is a directory"),
        (folder, "wb", "Is a directory"),
        (link, "wb", "Is a link"),
        (link, "a", "Is a link"),
        (device, "rb", "Is not a regular file"),
        (device, "wb", "Is a link"),
    ],
)
def test_what_is_no_regular_file_is_named(tmp_path: Path, put: Callable[[Path], None], mode: str, why: str) -> None:
    (tmp_path / "theirs").write_text("theirs")
    put(tmp_path / "file")
    with pytest.raises(OSError, match=why) as caught:
        regular.opened(tmp_path / "file", mode)
    assert str(caught.value.filename) == str(tmp_path / "file")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_a_file_is_read_also_through_a_link_written_and_appended_to(tmp_path: Path) -> None:
    for mode in ("wb", "ab"):
        with regular.opened(tmp_path / "theirs", mode) as stream:
            stream.write(b"+")
    link(tmp_path / "file")
    assert regular.content(tmp_path / "file") == b"++"
