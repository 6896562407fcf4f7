"""`finetune run` with the real trainer: a tiny model, on CPU, as processes of this machine."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from cli.calls import JOB
from cli.replicas import alive
from finetune_api.runtime import report
from finetune_api.runtime.report import FinalReport, ProgressRecord
from finetune_cli import kubernetes_yaml
from trainer.models import dataset, model_folder

FINETUNE = (sys.executable, "-m", "finetune_cli", "run", "job.yaml")
HYPER = "hyperparameters: {batch_size: 4, learning_rate: 1e-3, sequence_length: 64, n_epochs: 1}"
TWO_NODES = ("--set", "compute.nodes=2", "--set", "hyperparameters.batch_size=2")


@dataclass(frozen=True)
class Finished:
    place: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Finished:
    """A folder with a job that was run to its end, and what that run has said."""
    place = _filled(tmp_path_factory.mktemp("finished"), model)
    return Finished(place, _run(place))


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Iterator[Path]:
    """A folder with a job and rows; afterwards no process and no temporary file of it is left."""
    yield _filled(tmp_path, model)
    assert alive(_mark(tmp_path)) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def _filled(folder: Path, model: Path) -> Path:
    dataset(folder / "train.jsonl", 24)
    dataset(folder / "held-out.jsonl", 6, seed=50)
    data = "  data: {validation_path: held-out.jsonl}\n  " + HYPER + "\n"
    (folder / "job.yaml").write_text(JOB.replace("org/name", str(model)) + data)
    (folder / "tmp").mkdir()
    return folder


def _mark(place: Path) -> str:
    return f"SAMPLE_RUN={place}/"


def _environment(place: Path) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "TMPDIR": str(place / "tmp"), "SAMPLE_RUN": f"{place}/"}
    return dict(os.environ) | own


def _run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FINETUNE, *arguments], cwd=place, env=_environment(place), capture_output=True, text=True, check=False
    )


@contextmanager
def _started(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run under way; killed with everything it started if the test does not wait for its end."""
    with subprocess.Popen(
        [*FINETUNE, *arguments], cwd=place, env=_environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            for pid in alive(_mark(place)):
                os.kill(pid, signal.SIGKILL)


def _read_until(process: subprocess.Popen[str], start: str) -> list[str]:
    """Lines of standard error up to the first that starts so."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {''.join(lines)}")


def _status(output: Path) -> Any:
    return kubernetes_yaml.value((output / "status.yaml").read_text())


def test_a_run_ends_in_a_result_a_status_and_a_summary(finished: Finished) -> None:
    place, done = finished.place, finished.done
    assert done.returncode == 0, done.stderr
    output = place / "sample-output"
    status = _status(output)
    assert (status["phase"], status["run"], status["progress"]["step"]) == ("Succeeded", 1, 6)
    assert status["result"]["uri"] == "sample-output/result"
    assert (output / "result" / "adapter_config.json").is_file()
    assert "step 6/6  loss " in done.stderr
    assert "succeeded in " in done.stdout
    assert "note:" not in done.stdout
    assert "eval loss:  " in done.stdout
    assert "training loss over steps" in done.stdout
    assert (output / "logs" / "sample-1-worker-0.log").read_text().count('{"record":"progress"') == 6


def test_two_nodes_are_stopped_by_ctrl_c_and_continue_with_the_same_command(place: Path) -> None:
    asked = (*TWO_NODES, "--output", "out", "--set", "hyperparameters.n_epochs=3")
    with _started(place, *asked) as process:
        _read_until(process, "step 2/")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "To resume, run the same command again: finetune run job.yaml --set compute.nodes=2" in told
    assert _status(place / "out")["phase"] == "Suspended"
    assert alive(_mark(place)) == []
    done = _run(place, *asked, "--quiet", "-o", "json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert (status["phase"], status["run"], status["layout"]["nodes"]) == ("Succeeded", 2, 2)
    lines = (place / "out" / "records.jsonl").read_text().splitlines()
    steps = [r.step for line in lines if isinstance(r := report.parse(line), ProgressRecord)]
    assert steps == list(range(1, 19))
    assert {path.name for path in (place / "out" / "logs").iterdir()} == {
        f"sample-{run}-worker-{node}.log" for run in (1, 2) for node in (0, 1)
    }  # fmt: skip


def test_a_node_that_is_killed_fails_the_run_and_is_named(place: Path) -> None:
    asked = (*TWO_NODES, "--output", "out", "--set", "hyperparameters.n_epochs=500")
    with _started(place, *asked) as process:
        _read_until(process, "step 2/")
        second = _run(place, *asked)
        assert second.returncode == 2
        assert f"Another run (process {process.pid}) is using the folder out. [OutputRefused]" in second.stderr
        [launcher] = _launchers(place, node=1)
        os.kill(launcher, signal.SIGKILL)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: sample-1-worker-1: The trainer was killed by signal 9. [Killed]" in told
    assert "log: out/logs/sample-1-worker-1.log" in told
    assert _status(place / "out")["phase"] == "Failed"


def _launchers(place: Path, *, node: int) -> list[int]:
    """Processes of a node that are no ranks: ranks know their RANK."""
    found = set(alive(_mark(place))) & set(alive(f"PET_NODE_RANK={node}"))
    return sorted(pid for pid in found if b"\0RANK=" not in Path(f"/proc/{pid}/environ").read_bytes())


def test_a_result_that_is_complete_is_not_made_again(place: Path, finished: Finished) -> None:
    copytree(finished.place / "sample-output", place / "sample-output")
    result = place / "sample-output" / "result" / "adapter_model.safetensors"
    before = result.stat()
    again = _run(place)
    assert again.returncode == 0, again.stderr
    assert "succeeded in " in again.stdout
    assert "note:       The output already held the result, of step 6: nothing was trained." in again.stdout
    assert (result.stat().st_ino, result.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert _status(place / "sample-output")["run"] == 2


def test_the_output_of_another_job_is_refused_and_keeps_its_status(place: Path, finished: Finished) -> None:
    copytree(finished.place / "sample-output", place / "sample-output")
    before = (place / "sample-output" / "status.yaml").read_bytes()
    other = _run(place, "--set", "hyperparameters.learning_rate=2e-3")
    assert other.returncode == 2
    assert "hyperparameters.learning_rate was 0.001 and is 0.002 now" in other.stderr
    assert "[OutputRefused]" in other.stderr
    assert (place / "sample-output" / "status.yaml").read_bytes() == before


def test_an_output_that_cannot_be_written_fails_the_run(place: Path) -> None:
    (place / "out" / ".status.yaml").mkdir(parents=True)
    done = _run(place, "--output", "out")
    assert done.returncode == 1
    said = "A volume could not be written or read. (out/.status.yaml: Is a directory) [StorageFailed]"
    assert f"error: spec.output.uri: {said}" in done.stderr


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("of-others", "of-others/status.yaml is not the status of a run"),
        ("bytes", "bytes/status.yaml is not the status of a run"),
        ("pipe", "pipe/status.yaml is not the status of a run"),
        ("many", "many/status.yaml is not the status of a run"),
        ("model", "model is the folder of the model"),
    ],
)
def test_files_of_others_are_refused_and_stay(place: Path, output: str, sentence: str) -> None:
    for name in ("of-others", "bytes", "pipe", "many", "model"):
        (place / name).mkdir()
        (place / name / "config.json").write_text("{}")
    (place / "of-others" / "status.yaml").write_text("everything: fine\n")
    (place / "bytes" / "status.yaml").write_bytes(bytes(range(256)))
    os.mkfifo(place / "pipe" / "status.yaml")
    (place / "many" / "status.yaml").write_text(f"run: {'9' * 4_000}\n")
    before = sorted((place / output).rglob("*"))
    done = _run(place, "--output", output, "--model", "./model")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert f"at --output {output}" in done.stderr
    assert sorted((place / output).rglob("*")) == before


def _link(path: Path) -> None:
    path.symlink_to(next(each for each in path.parents if each.name == "out").with_name("theirs"))


def _file(path: Path) -> None:
    path.write_text("no folder")


LOG = "logs/sample-1-worker-0.log"


@pytest.mark.parametrize(
    ("name", "put", "said"),
    [
        (".lock", _link, "is a link, and a run needs a file"),
        (".lock", os.mkfifo, "is a pipe, and a run needs a file"),
        (".lock", Path.mkdir, "is a folder, and a run needs a file"),
        ("logs", _link, "is a link, and a run needs a folder"),
        ("logs", _file, "is a file, and a run needs a folder"),
        (LOG, _link, "is a link, and a run needs a file"),
        (LOG, os.mkfifo, "is a pipe, and a run needs a file"),
        (LOG, Path.mkdir, "is a folder, and a run needs a file"),
    ],
)
def test_a_link_or_a_pipe_where_a_run_writes_is_refused_by_name(
    place: Path, name: str, put: Callable[[Path], None], said: str
) -> None:
    (place / "theirs").write_text("theirs")
    (place / "out" / name).parent.mkdir(parents=True)
    put(place / "out" / name)
    before = sorted((place / "out").rglob("*"))
    done = _run(place, "--output", "out")
    assert done.returncode == 2, done.stderr
    assert f"error: spec.output.uri: out/{name} {said} of its own there. [OutputRefused]" in done.stderr
    assert "  remedy: Remove it, or give --output with another folder." in done.stderr
    assert sorted((place / "out").rglob("*")) == before
    assert (place / "theirs").read_text() == "theirs"


def test_a_log_of_another_run_may_be_a_link(place: Path, finished: Finished) -> None:
    copytree(finished.place / "sample-output", place / "sample-output")
    (place / "sample-output" / "logs" / "latest.log").symlink_to("sample-1-worker-0.log")
    assert _run(place).returncode == 0


def test_a_command_that_is_killed_leaves_a_checkpoint_and_the_folder_is_locked_until_then(place: Path) -> None:
    """The trainer is paused until the next command has been refused: its save takes no time on this model."""
    asked = ("--output", "out", "--set", "hyperparameters.n_epochs=500")
    with _started(place, *asked) as process:
        _read_until(process, "step 2/")
        [launcher] = _launchers(place, node=0)
        ranks = set(alive(_mark(place))) - {process.pid, launcher}
        descriptor = os.pidfd_open(launcher)
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        process.kill()
        process.wait()
        second = _run(place, *asked)
        assert second.returncode == 2, second.stderr
        said = f"The run of process {process.pid}, which was killed, is still saving a checkpoint in the folder out."
        assert f"error: spec.output.uri: {said} [OutputRefused]" in second.stderr
        for rank in ranks:
            os.kill(rank, signal.SIGCONT)
        select.select([descriptor], [], [])
        os.close(descriptor)
    saved = report.parse((place / "out" / "report.json").read_text())
    assert isinstance(saved, FinalReport)
    assert saved.exit_code == 75
    with _started(place, *asked) as process:
        told = _read_until(process, "resuming")
        assert told[-1] == f"resuming from the checkpoint of step {saved.step}\n"
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 75
    shutil.rmtree(place / "tmp")  # of the command that was killed
    (place / "tmp").mkdir()


def test_an_output_that_is_a_file_is_refused(place: Path) -> None:
    (place / "out").write_text("mine")
    done = _run(place, "--output", "out")
    assert done.returncode == 2
    assert "error: spec.output.uri: The folder out cannot be created: File exists. [OutputRefused]" in done.stderr
    assert (place / "out").read_text() == "mine"
