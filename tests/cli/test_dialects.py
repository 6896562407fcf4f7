"""The table of dialects: which file is in which, and what a dialect's module provides."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from cli.calls import JOB
from finetune_cli import dialects
from finetune_cli.dialects import DIALECTS

TOML = '[job]\nmodel = "org/name"\n'
FILES = {
    "a file that is named so": ("job.toml", "anything", "toml_sections"),
    "TOML on standard input": ("-", f"# a comment\n\n{TOML}", "toml_sections"),
    "YAML on standard input": ("-", JOB, None),
    "JSON on standard input": ("-", '{"kind": "FinetuneJob"}', None),
    "TOML in a file of another name": ("job.yaml", TOML, None),
}


@pytest.mark.parametrize("case", FILES)
def test_the_dialect_of(case: str) -> None:
    file, text, expected = FILES[case]
    found = dialects.of(file, text)
    assert (found.__name__.rpartition(".")[2] if found else None) == expected


def test_every_module_of_the_folder_is_in_the_table_and_has_both_functions() -> None:
    [folder] = dialects.__path__
    assert {path.stem for path in Path(folder).glob("[a-z]*.py")} == set(DIALECTS)
    for dialect in DIALECTS:
        module = import_module(f"finetune_cli.dialects.{dialect}")
        assert callable(module.resource)
        assert callable(module.rephrase)


def test_messages_name_keys_as_the_dialect_spells_them() -> None:
    toml = dialects.of("-", TOML)
    assert toml is not None
    assert toml.rephrase("Set spec.job.model, or spec.surprise.") == "Set job.model, or spec.surprise."
