"""No job file, however odd, ends `validate` or `render` in anything but exit code 0 or 2."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cli.calls import finetune, job
from cli.odd_jobs import UNREADABLE, odd_job
from finetune_cli import job_file, planning, printing
from finetune_cli.errors import InvalidInput
from finetune_cli.overrides import Overrides
from finetune_cli.verbs import render, validate

JOBS, PROCESSES = 5000, 12


def test_every_odd_job_is_accepted_or_refused_by_both_verbs(tmp_path: Path) -> None:
    counts = Counter(_accepted(_written(tmp_path, seed), seed) for seed in range(JOBS))
    assert counts[True] > JOBS // 10, "too few jobs reach the plan for this test to mean anything"
    assert counts[False] > JOBS // 10


@pytest.mark.parametrize("verb", ["validate", "render"])
def test_a_process_shows_no_traceback(verb: str, tmp_path: Path) -> None:
    for seed in range(PROCESSES):
        command = [sys.executable, "-m", "finetune_cli", verb, str(_written(tmp_path, seed))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 2), (seed, done.stderr)
        assert "Traceback" not in done.stderr, seed


DEEP = {
    "JSON": (".json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "JSON that its parser can read": (".json", '{"a": ' + "[" * 900 + "]" * 900 + "}"),
    "YAML in brackets": (".yaml", "a: " + "[" * 100_000 + "]" * 100_000),
    "YAML in blocks": (".yaml", "- " * 2000 + "a"),
    "YAML in anchors": (".yaml", "x0: &x0 [1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}]\n" for i in range(1, 3000))),
    "TOML": (".toml", "a = " + "[" * 100_000 + "]" * 100_000),
    "TOML that its parser can read": (".toml", "a = " + "[" * 150 + "]" * 150),
}


@pytest.mark.parametrize("case", DEEP)
def test_a_job_that_is_nested_too_deeply_is_refused(case: str, tmp_path: Path) -> None:
    """In a process: libyaml would crash it."""
    suffix, text = DEEP[case]
    file = tmp_path / f"deep{suffix}"
    file.write_text(text)
    command = [sys.executable, "-m", "finetune_cli", "validate", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "nested more than 100 levels deep" in done.stdout


BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


def test_aliases_that_stand_for_billions_of_values_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMB)
    done = finetune("validate", tmp_path / "bomb.yaml")
    assert (done.exit_code, "more than 100,000 values, aliases expanded" in done.output) == (2, True)


def test_a_device_is_no_job() -> None:
    done = finetune("validate", "/dev/zero")
    assert (done.exit_code, "This is a device." in done.output) == (2, True)


def test_what_would_control_the_terminal_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text('"\\e[31mred\\e]0;title\\a\\u202e": 1\n')
    done = finetune("validate", tmp_path / "job.yaml")
    assert "\\x1b[31mred\\x1b]0;title\\x07\\u202e" in done.output
    assert not set(done.output) & {"\x1b", "\x07", "\u202e"}


def test_an_integer_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    for name, text in (("a.toml", "a = "), ("a.yaml", "a: "), ("a.json", '{"a": ')):
        (tmp_path / name).write_text(text + "1" * 5000 + "}" * (name == "a.json"))
        assert finetune("validate", tmp_path / name).exit_code == 2


@pytest.mark.parametrize("uri", UNREADABLE)
def test_a_uri_that_nothing_can_read_is_refused(uri: str, tmp_path: Path) -> None:
    assert finetune("validate", "--check-data", job(tmp_path, ("data: train.jsonl", f"data: {uri}"))).exit_code == 2
    assert finetune("render", job(tmp_path, ("data: train.jsonl", f"data: {uri}"))).exit_code == 2


def _written(folder: Path, seed: int) -> Path:
    suffix, text = odd_job(seed)
    file = folder / f"{seed}{suffix}"
    file.write_text(text, encoding="utf-8")
    return file


def _accepted(file: Path, seed: int) -> bool:
    """What both verbs answer, which has to be the same. Everything that they print is printed."""
    try:
        answer = validate.answer(str(file), Overrides(), check_data=seed % 2 == 0)
        printing.text(answer, "json")
        rendered = _rendered(file)
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    if seed % 2:
        assert answer["valid"] == rendered, seed
    return rendered


def _rendered(file: Path) -> bool:
    try:
        source = job_file.read(str(file))
        found = planning.accept(source, Overrides(), cluster=source.is_resource)
    except InvalidInput:
        return False
    for form in printing.FORMATS:
        printing.text(render.render(found, "all"), form)
    return True
