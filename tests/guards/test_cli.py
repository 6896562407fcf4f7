"""What `finetune` prints, against what it printed when it was recorded (commands.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guards import commands
from guards.commands import COMMANDS

REWRITE = os.environ.get("GUARDS") == "rewrite"


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, commands.Json]:
    """Command -> answer. Each command has a folder of its own."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS:
            folder = tmp_path_factory.mktemp("cli")
            patch.chdir(folder)
            found[command] = commands.run(command, folder)
    if REWRITE:
        _record(found)
    return found


def _record(found: dict[str, commands.Json]) -> None:
    commands.OUTPUT.mkdir(exist_ok=True)
    for old in commands.OUTPUT.iterdir():
        old.unlink()
    for command, answer in found.items():
        commands.file(command).write_text(commands.text(command, answer))
    lines = [commands.line(command, commands.structure(command, answer)) for command, answer in found.items()]
    commands.STRUCTURE.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_exit_code_and_structure_are_the_recorded_ones(command: str, answers: dict[str, commands.Json]) -> None:
    now = commands.line(command, commands.structure(command, answers[command]))
    assert now == commands.recorded()[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_word_is_the_recorded_one(command: str, answers: dict[str, commands.Json]) -> None:
    assert commands.text(command, answers[command]) == commands.file(command).read_text()


def test_every_recorded_output_belongs_to_one_command() -> None:
    files = {commands.file(command) for command in COMMANDS}
    assert files == set(commands.OUTPUT.iterdir())
    assert len(files) == len(COMMANDS) == len(commands.recorded())


def test_commands_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("run elsewhere.yaml", "validate good.yaml", "render native.yaml"):
        commands.run(command, tmp_path)
    inputs = {path.name for path in (commands.FOLDER / "inputs").iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == inputs
