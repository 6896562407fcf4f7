"""The verbs and their help: complete, alike wherever they are told, and quick to ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli.calls import finetune, job
from finetune_cli import reference, verbs
from finetune_cli.errors import InvalidInput
from finetune_cli.main import VERBS

ROOT = Path(__file__).parents[2]


def test_every_module_of_verbs_is_in_the_table() -> None:
    [folder] = verbs.__path__
    assert {path.stem for path in Path(folder).glob("[a-z]*.py")} == {verb.module for verb in VERBS.values()}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    result = finetune(verb, "-h")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: finetune {verb}")
    assert VERBS[verb].summary in finetune("--help").stdout


def test_asking_for_help_imports_nothing_heavy() -> None:
    """Start-up is a benchmark of its own (make bench-cli); this keeps the reason for it from going away."""
    script = (
        "import sys; from finetune_cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "click" in loaded
    assert not loaded & {"pydantic", "yaml", "rich", "finetune_api.resource.v1alpha1", "subprocess"}


def test_validating_imports_neither_pydantic_nor_the_runner(tmp_path: Path) -> None:
    script = f"""
import sys
from finetune_cli.main import cli
cli(['validate', {str(job(tmp_path))!r}], standalone_mode=False)
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "finetune_api.validation.check" in loaded
    slow = {"pydantic", "rich", "subprocess", "tomllib", "kubernetes", "aiohttp"}
    ours = {"finetune_api.resource.v1alpha1", "finetune_cli.local", "finetune_data", "finetune_plan.statuses"}
    assert not loaded & (slow | ours)


def test_the_reference_page_is_what_the_help_says() -> None:
    assert (ROOT / reference.PAGE).read_text(encoding="utf-8") == reference.page()


@pytest.mark.parametrize(
    ("verb", "hint"), [("dele", "Did you mean delete?"), ("tune", "The commands are run, validate,")]
)
def test_an_unknown_verb_is_refused(verb: str, hint: str) -> None:
    result = finetune(verb)
    assert result.exit_code == 2
    assert f"No such command '{verb}'. {hint}" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_names_the_program(shell: str) -> None:
    result = finetune("completion", shell)
    assert result.exit_code == 0
    assert "_FINETUNE_COMPLETE" in result.stdout


def test_no_color_takes_the_colours_out_of_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner  # noqa: PLC0415 - the one test that asks for a terminal's colours

    from finetune_cli.main import cli  # noqa: PLC0415

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in CliRunner().invoke(cli, ["validate", "none.yaml"], color=True).output
    assert "\x1b[" not in CliRunner().invoke(cli, ["validate", "none.yaml"], color=True, env={"NO_COLOR": "1"}).output


def test_a_key_is_explained_with_its_bounds_and_fate() -> None:
    lines = finetune("explain", "hyperparameters.learning_rate").stdout.splitlines()
    assert lines[0] == "hyperparameters.learning_rate"
    assert "  Fits:  number, more than 0, at most 1." in lines
    assert "  Fate:  honoured." in lines


@pytest.mark.parametrize(
    ("path", "explained"),
    [
        ("training.lora.rank_pattern", "training.lora.rank_pattern"),
        ("training.lora.rank_pattern.q_proj", "training.lora.rank_pattern"),
        ("pods.labels.example.org/team", "pods.labels"),
    ],
)
def test_an_entry_of_a_map_is_explained_as_the_map(path: str, explained: str) -> None:
    assert finetune("explain", path).stdout.splitlines()[0] == explained


def test_a_section_is_explained_with_its_keys() -> None:
    told = finetune("explain", "training.lora").stdout
    assert "    target_modules  " in told


def test_an_explanation_for_programs_has_the_rules() -> None:
    told = json.loads(finetune("explain", "spec.compute.gpu_type", "-o", "json").stdout)
    assert (told["path"], told["fate"]) == ("compute.gpu_type", "honoured")
    assert "missing_gpu_type" in [rule["reason"] for rule in told["rules"]]


def test_a_key_that_does_not_exist_is_answered_with_the_nearest() -> None:
    result = finetune("explain", "hyperparameters.lerning_rate")
    assert result.exit_code == 2
    assert "Did you mean hyperparameters.learning_rate? [UnknownKey]" in result.stderr
    assert "remedy: `finetune explain` lists the sections." in result.stderr


def test_a_refusal_is_an_exception_that_click_knows_to_show() -> None:
    assert issubclass(InvalidInput, click.ClickException)
    assert InvalidInput([]).exit_code == 2


def test_a_terminal_without_unicode_is_no_reason_to_fail(tmp_path: Path) -> None:
    file = job(tmp_path, ("gpu_type: CPU", "gpu_type: ⠉"))
    done = subprocess.run(
        [sys.executable, "-m", "finetune_cli", "validate", str(file)], capture_output=True, text=True, check=False,
        env={"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "'?' is not an accelerator known here." in done.stdout
