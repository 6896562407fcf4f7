"""How the command line ends when something goes wrong that no verb expects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.calls import finetune, job
from finetune_cli import exit_codes
from finetune_cli.errors import InvalidInput
from finetune_cli.exit_codes import Session
from finetune_cli.main import cli


def _bug() -> None:
    raise ZeroDivisionError("division by zero")


def test_a_bug_is_one_sentence_and_its_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_codes.run(_bug, Session()) == 70
    written = capsys.readouterr().err
    assert written.startswith("error: internal error: ZeroDivisionError: division by zero\n  remedy: ")
    assert "run: finetune --debug" in written
    assert "please report it" in written
    assert "Traceback" not in written


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_codes.run(_bug, Session(debug=True)) == 70
    written = capsys.readouterr().err
    assert "Traceback (most recent call last)" in written
    assert "_bug" in written


def _ends(error: BaseException) -> int:
    def command() -> None:
        raise error

    return exit_codes.run(command, Session())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (click.Abort(), 130),
        (click.UsageError("no such option"), 2),
        (InvalidInput([]), 2),
        (SystemExit(75), 75),
        (SystemExit(None), 0),
        (RecursionError(), 70),
        (OSError(28, "No space left on device"), 1),
    ],
)
def test_every_exception_has_an_exit_code(error: BaseException, code: int) -> None:
    assert _ends(error) == code


@pytest.mark.parametrize(("arguments", "variable"), [(["--debug", "version"], ""), (["version"], "1")])
def test_debug_is_an_option_and_a_variable(
    arguments: list[str], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_DEBUG", variable)
    session = Session()
    cli.main(arguments, standalone_mode=False, obj=session)
    assert session.debug


@pytest.mark.parametrize("arguments", [["render"], ["validate", "-o", "json"], ["run", "--dry-run"]])
def test_a_reader_that_has_enough_ends_the_program_quietly(arguments: list[str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "finetune_cli", *arguments, str(job(tmp_path))],
        stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 141
    assert "Error" not in done.stderr


def test_every_exit_code_is_in_the_help() -> None:
    words = finetune("--help").stdout.split()
    for name, code in vars(exit_codes).items():
        if name.isupper():
            assert str(code) in words, name
