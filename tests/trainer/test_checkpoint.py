"""Checkpoints: round trips, validity, refusals, and crashes at every point."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer import checkpoint, snapshot
from finetune_trainer.errors import OutputRefused, StorageFailed
from finetune_trainer.marker import digest_of, read_marker
from trainer import checkpoint_fixture as fixture
from trainer import checkpoint_work as work
from trainer.failpoints import Full, Hidden
from trainer.ranks import run_ranks, values


def folder(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}"


def steps(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def test_state_extra_and_random_numbers_are_restored_bit_by_bit(tmp_path: Path) -> None:
    drawn = work.save_and_draw(tmp_path, 20)
    assert checkpoint.latest(tmp_path) == 20
    assert work.same(work.load(tmp_path, 20), work.tensors(20))
    work.draw()
    assert work.load_and_draw(tmp_path, 20) == drawn


def test_an_output_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("keep", "protect", "stay"),
    [
        pytest.param(1, set[int](), [4], id="the newest stays"),
        pytest.param(2, set[int](), [3, 4], id="the two newest stay"),
        pytest.param(9, set[int](), [1, 2, 3, 4], id="fewer than allowed all stay"),
        pytest.param(1, {2}, [2, 4], id="the protected one stays besides the newest"),
        pytest.param(2, {4, 7}, [3, 4], id="protecting the newest or the absent takes no place"),
    ],
)
def test_pruning(tmp_path: Path, keep: int, protect: set[int], stay: list[int]) -> None:
    for step in range(1, 5):
        checkpoint.save(tmp_path, step, snapshot.take(work.tensors(step), {}), keep=keep, protect=protect)
    assert steps(tmp_path) == [f"step-{step:08d}" for step in stay]


def test_pruning_removes_the_marker_before_the_files_it_lists(tmp_path: Path) -> None:
    work.save(tmp_path, 1)
    removed = [path.name for kind, path in work.operations(tmp_path, 2) if kind == "remove"]
    assert len(removed) == 6
    assert removed[0] == "COMPLETE"


def test_a_valid_checkpoint_of_the_same_step_is_not_written_again(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    before = (folder(tmp_path, 20) / "COMPLETE").stat().st_ino
    work.save(tmp_path, 20)
    assert (folder(tmp_path, 20) / "COMPLETE").stat().st_ino == before


def spoil_marker(of: Path) -> None:
    (of / "COMPLETE").write_text('{"step": 20, "files"')


def remove_marker(of: Path) -> None:
    (of / "COMPLETE").unlink()


def shorten_shard(of: Path) -> None:
    shard = of / "shard-00000.bin"
    os.truncate(shard, shard.stat().st_size - 1)


def remove_random_state(of: Path) -> None:
    (of / "rank-00000.safetensors").unlink()


@pytest.mark.parametrize("spoil", [spoil_marker, remove_marker, shorten_shard, remove_random_state])
def test_an_incomplete_checkpoint_does_not_count_and_is_written_again(tmp_path: Path, spoil: Any) -> None:
    work.save(tmp_path, 10)
    work.save(tmp_path, 20)
    spoil(folder(tmp_path, 20))
    assert checkpoint.latest(tmp_path) == 10
    work.save(tmp_path, 20)
    assert checkpoint.latest(tmp_path) == 20
    assert work.same(work.load(tmp_path, 20), work.tensors(20))


@pytest.mark.parametrize("name", ["shard-00000.bin", "rank-00000.safetensors", "extra.json", "index.json"])
def test_a_flipped_bit_is_found_and_the_next_start_uses_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    work.save(tmp_path, 10)
    work.save(tmp_path, 20)
    flip_a_bit(folder(tmp_path, 20) / name)
    with pytest.raises(StorageFailed, match=rf"step-00000020/{name} is corrupt .*does without that checkpoint"):
        checkpoint.load(tmp_path, 20, work.tensors(0))
    assert checkpoint.latest(tmp_path) == 10


def test_a_flipped_bit_that_one_rank_finds_is_known_to_all(tmp_path: Path) -> None:
    values(run_ranks(2, work.save, tmp_path, 10))
    values(run_ranks(2, work.save, tmp_path, 20))
    flip_a_bit(folder(tmp_path, 20) / "shard-00001.bin")
    for ended in run_ranks(2, work.load, tmp_path, 20):
        assert isinstance(ended.error, StorageFailed)
        assert "shard-00001.bin is corrupt" in str(ended.error)
    assert checkpoint.latest(tmp_path) == 10


def test_a_flipped_bit_in_what_a_link_leads_to_ends_the_link_and_changes_nothing_else(tmp_path: Path) -> None:
    for output, step in (("ours", 10), ("theirs", 20)):
        (tmp_path / output).mkdir()
        work.save(tmp_path / output, step)
    (tmp_path / "ours" / "checkpoints" / "step-00000020").symlink_to(folder(tmp_path / "theirs", 20))
    flip_a_bit(folder(tmp_path / "theirs", 20) / "shard-00000.bin")
    before = sorted((tmp_path / "theirs").rglob("*"))
    with pytest.raises(StorageFailed, match=r"shard-00000\.bin is corrupt"):
        checkpoint.load(tmp_path / "ours", 20, work.tensors(0))
    assert steps(tmp_path / "ours") == ["step-00000010"]
    assert sorted((tmp_path / "theirs").rglob("*")) == before


def put_another(of: Path) -> None:
    """As somebody does who makes a backup in a hurry."""
    shutil.rmtree(of)
    shutil.copytree(of.with_name("step-00000020"), of)


def lead_out(of: Path) -> None:
    marker = json.loads((of / "COMPLETE").read_bytes())
    marker["files"]["../../step-00000020/index.json"] = marker["files"]["index.json"]
    (of / "COMPLETE").write_text(json.dumps(marker))


def put_pipe(of: Path) -> None:
    (of / "shard-00000.bin").unlink()
    os.mkfifo(of / "shard-00000.bin")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_marker, "COMPLETE is not a marker"),
        (remove_marker, "COMPLETE is missing"),
        (shorten_shard, r"shard-00000\.bin has 167 bytes instead of 168"),
        (put_pipe, r"shard-00000\.bin has 0 bytes instead of 168"),
        (remove_random_state, r"rank-00000\.safetensors is missing"),
        (put_another, "it is that of another step"),
        (lead_out, "COMPLETE is not a marker"),
    ],
)
def test_what_is_no_checkpoint_goes_at_the_next_start_which_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Any, why: str
) -> None:
    for step in (10, 20, 30):
        work.save(tmp_path, step)
    (tmp_path / "checkpoints" / ".tmp-step-00000040").mkdir()
    (tmp_path / "checkpoints" / "step-00000050").touch()
    (tmp_path / "checkpoints" / "step-000000060").mkdir()
    spoil(folder(tmp_path, 30))
    checkpoint.remove_leftovers(tmp_path)
    assert steps(tmp_path) == ["step-000000060", "step-00000020"], "what has no name of ours, and one of two"
    assert re.search(f"step-00000030 is no checkpoint and is removed: {why}", caplog.text)


@pytest.mark.parametrize("name", [".tmp-step-00000040", "step-00000005", "step-00000007"])
def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path, name: str) -> None:
    """Anyone who may write to the output could name the files of others: a leftover, no checkpoint, an old one."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for step in (5, 7):
        work.save(theirs, step)
    remove_marker(folder(theirs, 5))
    before = sorted(theirs.rglob("*"))
    work.save(tmp_path, 10)
    target = folder(theirs, 7 if name.endswith("7") else 5)
    (tmp_path / "checkpoints" / name).symlink_to(target)
    checkpoint.remove_leftovers(tmp_path)
    for step in (20, 30):
        work.save(tmp_path, step)
    assert sorted(theirs.rglob("*")) == before
    assert steps(tmp_path) == ["step-00000020", "step-00000030"]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_file_is_read_once_and_each_part_is_a_sign_of_life(tmp_path: Path) -> None:
    parts: list[None] = []
    state = {"weight": torch.randn(4, 1 << 20), "other": torch.randn(1 << 20)}
    checkpoint.save(tmp_path, 20, snapshot.take(state, {}), keep=1, protect=set())
    checkpoint.load(tmp_path, 20, state)
    before = bytes_read()
    checkpoint.load(tmp_path, 20, state, lambda: parts.append(None))
    size = (folder(tmp_path, 20) / "shard-00000.bin").stat().st_size
    assert 1 <= (bytes_read() - before) / size < 1.1
    assert len(parts) == 2


def test_scalars_are_in_one_file_where_the_rest_is_in_shards(tmp_path: Path) -> None:
    """Every rank needs them, and each file that it needs is read whole."""
    values(run_ranks(2, work.save_shards_and_scalars, tmp_path))
    index = json.loads((folder(tmp_path, 20) / "index.json").read_bytes())
    files = {name: {chunk["file"] for chunk in each["chunks"]} for name, each in index["tensors"].items()}
    assert len(files.pop("weight")) == 2
    assert sorted(files) == ["a", "b", "c"]
    assert len(set.union(*files.values())) == 1


def bytes_read() -> int:
    """By this process, from files and whatever else."""
    return int(Path("/proc/self/io").read_text().split()[1])


def unreadable(file: Path) -> None:
    """Reading it fails, with an error other than that it is missing."""
    file.unlink()
    file.symlink_to(file.name)


@pytest.mark.parametrize("name", ["COMPLETE", "shard-00000.bin"])
def test_what_cannot_be_read_now_is_neither_skipped_nor_removed(tmp_path: Path, name: str) -> None:
    work.save(tmp_path, 10)
    work.save(tmp_path, 20)
    whole = shutil.copytree(folder(tmp_path, 20), tmp_path / "whole")
    unreadable(folder(tmp_path, 20) / name)
    message = rf"cannot read .*step-00000020/{name}: Too many levels .*; check that the output volume is mounted"
    for attempt in (
        lambda: checkpoint.latest(tmp_path),
        lambda: checkpoint.load(tmp_path, 20, work.tensors(0)),
        lambda: work.save(tmp_path, 30),
    ):
        with pytest.raises(StorageFailed, match=message):
            attempt()
    shutil.rmtree(folder(tmp_path, 20))
    whole.rename(folder(tmp_path, 20))
    assert steps(tmp_path) == [f"step-{step:08d}" for step in (10, 20, 30)]
    assert all(checkpoint.is_valid(tmp_path, step) for step in (10, 20, 30)), "also what was saved meanwhile"


def test_a_file_that_cannot_be_read_does_not_damage_its_checkpoint(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    file = folder(tmp_path, 20) / "rank-00001.safetensors"
    file.touch()
    update_digest(folder(tmp_path, 20), file.name)
    file.unlink()
    os.mknod(file, stat.S_IFSOCK)  # has the size 0 and cannot be opened
    with pytest.raises(StorageFailed, match=r"cannot read .*rank-00001\.safetensors: No such device"):
        checkpoint.load(tmp_path, 20, work.tensors(0))
    assert checkpoint.latest(tmp_path) == 20


def test_a_checkpoint_that_is_removed_before_it_is_loaded_is_named(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    remove_marker(folder(tmp_path, 20))
    with pytest.raises(StorageFailed, match=r"step-00000020 is not a valid checkpoint any more: .*does without it"):
        checkpoint.load(tmp_path, 20, work.tensors(0))


def test_the_checkpoint_just_published_is_never_pruned(tmp_path: Path) -> None:
    work.save(tmp_path, 10)
    work.save(tmp_path, 20, files=Hidden("COMPLETE"))
    assert checkpoint.latest(tmp_path) == 10, "the volume does not show the marker yet"
    assert (folder(tmp_path, 20) / "shard-00000.bin").exists()


def without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        pytest.param(work.tensors(0) | {"step": torch.zeros(2)}, "Size mismatch", id="another shape"),
        pytest.param(
            work.tensors(0) | {"step": torch.zeros((), dtype=torch.int64)},
            "step has dtype torch.float32 in the checkpoint and torch.int64 in this run",
            id="another dtype",
        ),
        pytest.param(
            work.tensors(0) | {"new": torch.zeros(1)}, "Missing key.*new",
            id="a tensor that is not in the checkpoint",
        ),
        pytest.param(
            without(work.tensors(0), "step"), "it has tensors that this run does not have: step;",
            id="a tensor that is not in the run",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_state_is_refused(tmp_path: Path, state: dict[str, Any], sentence: str) -> None:
    work.save(tmp_path, 20)
    with pytest.raises(OutputRefused, match=f"cannot resume from checkpoint .*step-00000020: .*{sentence}"):
        checkpoint.load(tmp_path, 20, state)


def test_a_checkpoint_is_read_with_json_and_the_bytes_alone(tmp_path: Path) -> None:
    values(run_ranks(2, work.save, tmp_path, 20))
    index = json.loads((folder(tmp_path, 20) / "index.json").read_bytes())
    weight = np.full((6, 4), np.nan, np.float32)
    for chunk in index["tensors"]["parameters.layers.0.weight"]["chunks"]:
        place = tuple(slice(o, o + s) for o, s in zip(chunk["offsets"], chunk["sizes"], strict=True))
        content = (folder(tmp_path, 20) / chunk["file"]).read_bytes()[chunk["position"] :][: chunk["length"]]
        weight[place] = np.frombuffer(content, "<f4").reshape(chunk["sizes"])
    assert weight.tolist() == work.tensors(20)["parameters"]["layers.0.weight"].tolist()
    assert {path.suffix for path in folder(tmp_path, 20).iterdir()} == {".bin", ".json", ".safetensors", ""}


def test_a_checkpoint_of_another_python_and_torch_is_read(tmp_path: Path) -> None:
    state = fixture.tensors(0)
    shutil.copytree(fixture.FOLDER, tmp_path, dirs_exist_ok=True)
    written_by = checkpoint.load(tmp_path, 20, state)
    assert written_by != fixture.versions(), "or this test shows nothing"
    assert work.same(state, fixture.tensors(1))


def test_a_checkpoint_with_a_pickled_index_is_refused(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    of = folder(tmp_path, 20)
    (of / "index.json").rename(of / ".metadata")
    update_digest(of, ".metadata", instead_of="index.json")
    with pytest.raises(OutputRefused, match=r"its index \(\.metadata\) is a pickle, which .*another output"):
        checkpoint.load(tmp_path, 20, work.tensors(0))


class Code:
    """Unpickled without care, this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_code_in_the_index_does_not_run(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    (folder(tmp_path, 20) / "index.json").write_bytes(pickle.dumps(Code(tmp_path / "ran")))
    update_digest(folder(tmp_path, 20), "index.json")
    with pytest.raises(OutputRefused, match=r"cannot resume from checkpoint .*step-00000020: .*Invalid JSON"):
        checkpoint.load(tmp_path, 20, work.tensors(0))
    assert not (tmp_path / "ran").exists()


def changed_index(**changes: Any) -> Any:
    """Change the tensor `step`, or its one chunk where the chunk has that key."""

    def change(tensors: dict[str, Any]) -> None:
        tensor = tensors["step"]
        for key, value in changes.items():
            (tensor["chunks"][0] if key in tensor["chunks"][0] else tensor)[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(lambda tensors: tensors["step"].pop("dtype"), "dtype.*Field required", id="a field is missing"),
        pytest.param(changed_index(dtype="save"), "has no dtype save", id="an unknown dtype"),
        pytest.param(changed_index(file="../x.bin"), "String should match", id="a file outside the folder"),
        pytest.param(changed_index(chunks=[]), "chunks do not cover", id="a chunk is missing"),
        pytest.param(
            changed_index(sizes=[1]), "differ in the number of dimensions", id="a chunk with more dimensions"
        ),
        pytest.param(
            changed_index(position=1 << 40), "does not have the 4 bytes", id="bytes behind the end of the file"
        ),
        pytest.param(
            changed_index(length=1 << 40), "does not have the 4 bytes", id="more bytes than the tensor takes"
        ),
    ],
)
def test_an_invalid_index_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    work.save(tmp_path, 20)
    path = folder(tmp_path, 20) / "index.json"
    index = json.loads(path.read_bytes())
    change(index["tensors"])
    path.write_text(json.dumps(index))
    update_digest(folder(tmp_path, 20), "index.json")
    with pytest.raises(OutputRefused, match=f"(?s)cannot resume from checkpoint .*step-00000020: .*{sentence}"):
        checkpoint.load(tmp_path, 20, work.tensors(0))


def update_digest(of: Path, name: str, instead_of: str = "") -> None:
    """Update the digest in the marker, as anyone with write access to the volume can."""
    marker = json.loads((of / "COMPLETE").read_bytes())
    marker["files"].pop(instead_of, None)
    marker["files"][name] = digest_of(of / name).model_dump()
    (of / "COMPLETE").write_text(json.dumps(marker))


def test_a_full_volume_names_the_file_and_the_way_out_and_keeps_what_was_there(tmp_path: Path) -> None:
    work.save(tmp_path, 10)
    with pytest.raises(StorageFailed, match=r"cannot write .*: No space left on device; free space on the output"):
        work.save(tmp_path, 20, files=Full())
    assert checkpoint.latest(tmp_path) == 10
    work.save(tmp_path, 20)
    assert steps(tmp_path) == ["step-00000010", "step-00000020"]


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    with pytest.raises(StorageFailed, match=r"cannot write .*checkpoints.*: Not a directory"):
        work.save(tmp_path, 20)


def test_two_ranks_each_go_on_with_their_own_random_numbers(tmp_path: Path) -> None:
    drawn = values(run_ranks(2, work.save_and_draw, tmp_path, 20))
    assert drawn[0] != drawn[1]
    assert values(run_ranks(2, work.load_and_draw, tmp_path, 20)) == drawn


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_of_two_ranks_load_on_any_number(tmp_path: Path, world: int) -> None:
    values(run_ranks(2, work.save, tmp_path, 20))
    for state in values(run_ranks(world, work.load, tmp_path, 20)):
        assert work.same(state, work.tensors(20))


def test_ranks_that_are_new_get_random_numbers_of_their_own_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = values(run_ranks(2, work.save_and_draw, tmp_path, 20))
    three = values(run_ranks(3, work.load_and_draw, tmp_path, 20))
    assert three[:2] == drawn
    assert three[2] not in drawn
    assert values(run_ranks(3, work.load_and_draw, tmp_path, 20)) == three, "the same every time"
    with caplog.at_level(logging.WARNING):
        work.load(tmp_path, 20)
    assert "written by 2 ranks and is resumed by 1" in caplog.text


@pytest.mark.parametrize("pattern", ["shard-*", "rank-*"])
def test_if_one_rank_cannot_write_every_rank_fails_and_nothing_is_published(tmp_path: Path, pattern: str) -> None:
    values(run_ranks(2, work.save, tmp_path, 10))
    for ended in run_ranks(2, work.save_on_full_rank, tmp_path, 20, 1, pattern):
        assert isinstance(ended.error, StorageFailed)
        assert str(ended.error).startswith("rank 1: cannot write")
    assert checkpoint.latest(tmp_path) == 10
    assert not folder(tmp_path, 20).exists()


def test_nodes_without_shared_storage_are_refused(tmp_path: Path) -> None:
    for ended in run_ranks(2, work.save_apart, tmp_path, 20):
        assert isinstance(ended.error, StorageFailed)
        assert "ReadWriteMany" in str(ended.error)


def test_a_save_killed_before_or_after_any_operation_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    [(operations, found)] = values(run_ranks(1, work.die_everywhere, tmp_path))
    assert operations.keys() == {"folder", "create", "fsync", "rename", "remove"}
    assert found == sorted(found), "from the operation that publishes on, it is the new one"
    assert set(found) == {20, 30}


@pytest.mark.parametrize(
    ("victim", "stride"),
    [
        pytest.param(0, 3, id="the first rank, at every third operation"),
        pytest.param(1, 1, id="the second rank, at every operation"),
    ],
)
def test_a_save_of_two_ranks_one_killed(tmp_path: Path, victim: int, stride: int) -> None:
    start = work.prepare(tmp_path / "start")
    counted = shutil.copytree(start, tmp_path / "counted")
    operations = values(run_ranks(2, work.operations, counted, 30))[victim]
    for at in range(1, len(operations) + 1, stride):
        output = shutil.copytree(start, tmp_path / str(at))
        ended = run_ranks(2, work.save_dying, output, 30, victim, at, False)
        assert ended[victim].code == -signal.SIGKILL
        assert ended[1 - victim].error is not None, "the other rank fails too"
        work.after_the_crash(output)


def test_the_marker_lists_every_file(tmp_path: Path) -> None:
    work.save(tmp_path, 20)
    marker = read_marker(folder(tmp_path, 20))
    assert marker is not None
    names = {path.name for path in folder(tmp_path, 20).iterdir()}
    assert set(marker.files) == names - {"COMPLETE"}
    assert all(digest_of(folder(tmp_path, 20) / name) == expected for name, expected in marker.files.items())
