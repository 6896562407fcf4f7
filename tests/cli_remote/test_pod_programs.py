"""The programs of the transfer pod, as processes of their own: whole, verified, one at a time, and never for ever."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

from finetune_cli.remote import pod_programs
from finetune_cli.remote.pod_programs import receive as receiving
from finetune_cli.remote.pod_programs import send as sending

TEXT = b"row\n" * 100_000
DIGEST = hashlib.sha256(TEXT).hexdigest()


def command(name: str, folder: Path, *arguments: str) -> list[str]:
    """The program as the pod gets it; its mark of life lies in the test's folder."""
    return [
        sys.executable,
        "-c",
        pod_programs.source(name).replace("/tmp/finetune-alive", str(folder / "alive")),
        *arguments,
    ]


def receive(
    folder: Path, data: bytes, size: int = len(TEXT), digest: str = DIGEST
) -> subprocess.CompletedProcess[bytes]:
    target = str(folder / "volume" / "rows.jsonl")
    return subprocess.run(command("receive", folder, target, str(size), digest), input=data, capture_output=True,
                          check=False, timeout=30)  # fmt: skip


def test_a_file_gets_its_name_when_all_of_it_is_there(tmp_path: Path) -> None:
    done = receive(tmp_path, TEXT)
    assert (done.returncode, done.stderr) == (0, b"")
    words = done.stdout.split(b"\n")
    assert (words[0], words[-2]) == (b"at 0", b"done")
    assert (tmp_path / "volume" / "rows.jsonl").read_bytes() == TEXT
    assert [p.name for p in (tmp_path / "volume").iterdir()] == ["rows.jsonl"]


def test_half_a_file_has_no_name_and_is_resumed(tmp_path: Path) -> None:
    assert receive(tmp_path, TEXT[:1000]).returncode == receiving.SHORT
    assert [p.name for p in (tmp_path / "volume").iterdir()] == [".rows.jsonl.part"]
    done = receive(tmp_path, TEXT[1000:])
    assert (done.returncode, done.stdout.split(b"\n")[0]) == (0, b"at 1000")
    assert (tmp_path / "volume" / "rows.jsonl").read_bytes() == TEXT


def test_a_damaged_file_is_thrown_away(tmp_path: Path) -> None:
    assert receive(tmp_path, b"x" + TEXT[1:]).returncode == receiving.DAMAGED
    assert list((tmp_path / "volume").iterdir()) == []


def test_a_part_that_is_too_long_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / ".rows.jsonl.part").write_bytes(TEXT * 2)
    done = receive(tmp_path, TEXT)
    assert (done.returncode, done.stdout.split(b"\n")[0]) == (0, b"at 0")


def test_a_file_that_is_there_is_not_wanted_again(tmp_path: Path) -> None:
    receive(tmp_path, TEXT)
    assert receive(tmp_path, b"").stdout == b"done\n"


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    target = str(tmp_path / "volume" / "rows.jsonl")
    words = command("receive", tmp_path, target, str(len(TEXT)), DIGEST)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"at 0\n"
            assert receive(tmp_path, TEXT).returncode == receiving.BUSY
        finally:
            first.kill()


def test_a_volume_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("no folder")
    done = receive(tmp_path, TEXT)
    assert (done.returncode, done.stderr) == (receiving.UNWRITABLE, b"File exists\n")


def test_a_folder_without_its_marker_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    words = command("send", tmp_path, str(tmp_path / "result"), "COMPLETE", "0")
    done = subprocess.run(words, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (sending.MISSING, b"")


def test_an_idle_pod_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(command("idle", tmp_path, "0.2"), capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_pod_that_is_asked_to_end_ends_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(command("idle", tmp_path, "600")) as pod:
        try:
            while not (tmp_path / "alive").exists():
                assert pod.poll() is None
            pod.send_signal(signal.SIGTERM)
            assert pod.wait(10) == 0
        finally:
            pod.kill()
