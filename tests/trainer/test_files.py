"""Durable files: the old or the new content at every moment, and errors with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from finetune_trainer.errors import StorageFailed
from finetune_trainer.files import DISK, fsync_tree, remove_tree, storage_errors, write_durable
from trainer import collectives_work as work
from trainer.failpoints import Failing
from trainer.ranks import run_ranks, values


def test_a_file_that_is_replaced_holds_the_old_or_the_new_wherever_the_writer_dies(tmp_path: Path) -> None:
    [found] = values(run_ranks(1, work.overwrite_dying, tmp_path))
    assert found == [b"old", b"old", b"old", b"new"]


def test_nothing_but_the_file_is_left(tmp_path: Path) -> None:
    write_durable(tmp_path / "a", b"1")
    write_durable(tmp_path / "a", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"2"


def test_syncing_a_tree_syncs_every_file_before_the_folder_that_lists_it(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/c", "d"):
        (tmp_path / name).touch()
    files = Failing()
    fsync_tree(tmp_path, files)
    assert [path.relative_to(tmp_path).as_posix() for _, path in files.log] == ["a", "b/c", "b", "d", "."]


def test_removing_a_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").touch()
    for name in ("tree", "file"):
        remove_tree(tmp_path / name, DISK)
        assert not (tmp_path / name).exists()
    assert (tmp_path / "kept" / "file").exists()


def test_a_link_in_the_place_of_a_new_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / ".tmp-report.json").symlink_to("theirs")
    with (
        pytest.raises(StorageFailed, match=r"\.tmp-report\.json: Is a link; remove it"),
        storage_errors(tmp_path / "report.json"),
    ):
        write_durable(tmp_path / "report.json", b"ours")
    assert (tmp_path / "theirs").read_text() == "theirs"


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "No space left on device; free space on the output volume, or lower"),
        (errno.EDQUOT, "Disk quota exceeded; free space"),
        (errno.EACCES, "Permission denied; grant write access to the user that the trainer runs as"),
        (errno.EROFS, "Read-only file system; mount the output volume read-write"),
        (errno.EIO, "Input/output error; check that the output volume is mounted"),
    ],
)
def test_an_error_names_the_path_the_reason_and_the_remedy(number: int, sentence: str) -> None:
    with pytest.raises(StorageFailed) as caught, storage_errors(Path("/out/file")):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"cannot write /out/file: {sentence}")
    with pytest.raises(StorageFailed, match="cannot write /out/other"), storage_errors(Path("/out/file")):
        raise OSError(number, os.strerror(number), "/out/other")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "Permission denied; grant read access to the user that the trainer runs as"),
        (errno.EMFILE, "Too many open files; raise the limit of open files (ulimit -n)"),
        (errno.EIO, "Input/output error; check that the output volume is mounted"),
    ],
)
def test_an_error_of_a_read_has_the_remedy_for_reading(number: int, remedy: str) -> None:
    with pytest.raises(StorageFailed) as caught, storage_errors(Path("/out/file"), "read"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value) == f"cannot read /out/file: {remedy}"
