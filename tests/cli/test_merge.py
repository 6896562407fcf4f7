"""`finetune merge`, as a process with the real program of the trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cli.calls import finetune
from finetune_cli.local import merge
from finetune_trainer.marker import read_marker
from trainer import merge_work, models

FINETUNE = (sys.executable, "-m", "finetune_cli", "merge")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and an adapter."""
    folder = tmp_path_factory.mktemp("place")
    merge_work.write_adapter(models.model_folder(folder / "base"), folder / "adapter")
    return folder


def run(place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*FINETUNE, *map(str, arguments)], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def test_an_adapter_becomes_a_model_and_the_end_says_where(place: Path, tmp_path: Path) -> None:
    done = run(place, "adapter", "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"merged 28 layers of adapter into {place / 'base'}\nresult: {tmp_path / 'merged'} (3.3 MiB of weights)\n"
    )
    assert done.stderr.startswith(f"merging adapter to {tmp_path / 'merged'}: 3.3 MiB\n")
    found = [
        AutoModelForCausalLM.from_pretrained(each).lm_head.weight for each in (place / "base", tmp_path / "merged")
    ]
    assert torch.equal(*found)
    assert read_marker(tmp_path / "merged") is not None


def test_programs_get_one_document(place: Path, tmp_path: Path) -> None:
    done = run(place, "adapter", "--output", tmp_path / "merged", "--base", "base", "-o", "json")
    assert json.loads(done.stdout) == {
        "adapter": "adapter", "base": "base", "layers": 28, "bytes": 3412480, "output": str(tmp_path / "merged")
    }  # fmt: skip
    assert "merging" not in done.stderr


def test_an_adapter_of_another_base_is_refused_with_exit_code_2(place: Path, tmp_path: Path) -> None:
    base = tmp_path / "other"
    model = models.llama()
    model.config.num_hidden_layers = 2
    model.model.layers = model.model.layers[:2]
    model.save_pretrained(base)
    done = run(place, "adapter", "--output", tmp_path / "merged", "--base", base)
    assert done.returncode == 2
    assert f"error: merge: adapter adapter does not fit the base {base}: it is for model.layers." in done.stderr
    assert done.stderr.rstrip().endswith(f"trained on, {place / 'base'} [ModelRefused]")
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--output", "merged"), "error: ADAPTER: The folder none does not exist. [ModelRefused]"),
        (("adapter", "--output", "base"), "error: --output: base already exists. [OutputRefused]"),
        (
            (".", "--output", "merged"),
            "error: ADAPTER: . has no adapter_config.json, so it is no adapter. [ModelRefused]",
        ),
        (("adapter", "--output", "base/config.json/merged"), "base/config.json is no folder that can be written to."),
    ],
)
def test_folders_are_checked_before_torch_is_imported(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(merge, "PROGRAM", ("false",))
    answer = finetune("merge", *arguments)
    first = answer.stderr.splitlines()[0]
    assert (answer.exit_code, first.startswith("error: "), message in first) == (2, True, True)
    assert "remedy: " in answer.stderr


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "The trainer was killed by signal 9."),
        ("raise SystemExit(1)", "The trainer failed with an unexpected error."),
        ("print('hello')", "The trainer failed with an unexpected error."),
    ],
)
def test_a_program_that_ends_without_an_outcome_is_a_failure(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    monkeypatch.setattr(merge, "PROGRAM", (sys.executable, "-c", script))
    answer = finetune("merge", place / "adapter", "--output", tmp_path / "merged")
    assert answer.exit_code == 1
    assert message in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_merge_that_is_stopped_leaves_nothing(place: Path, tmp_path: Path, number: signal.Signals) -> None:
    deep = tmp_path / "deep"
    merge_work.save_wide(deep)
    merge_work.write_adapter(deep, tmp_path / "adapter", rank=256)  # seconds of products
    output = tmp_path / "out" / "merged"
    with subprocess.Popen(
        [*FINETUNE, str(tmp_path / "adapter"), "--output", str(output)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        try:
            while process.poll() is None and not list(tmp_path.glob("out/.tmp-merge-merged/*.safetensors")):
                time.sleep(0.01)
            process.send_signal(number)
            code = process.wait()
        finally:
            process.kill()
    assert code == 130
    assert list((tmp_path / "out").iterdir()) == []
