"""What we take from kopf beyond its exported names is still there: a new version may change it without a word."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kopf
import pytest

KOPF = f"kopf {version('kopf')}"
REFERENCES = "kopf._cogs.structs.references"
"""The one module with names that kopf does not export."""


def _tree(module: str) -> ast.Module:
    """Source of ours, without importing it: that may be what fails."""
    spec = find_spec(f"finetune_operator.{module}")
    assert spec is not None
    return ast.parse(Path(str(spec.origin)).read_text())


def _private(name: str) -> Any:
    return getattr(importlib.import_module(REFERENCES), name)


def _insights() -> Any:
    return _private("Insights")()


def _kind() -> Any:
    return _private("Resource")("finetune.dev", "v1alpha1", "finetunejobs", namespaced=True)


USES: dict[str, Callable[[], bool]] = {
    "Insights takes no arguments": lambda: bool(_insights()),
    "Insights.watched_resources is a set": lambda: isinstance(_insights().watched_resources, set),
    "Insights.revised is a condition": lambda: isinstance(_insights().revised, asyncio.Condition),
    "Insights.ready_resources is an event": lambda: isinstance(_insights().ready_resources, asyncio.Event),
    "Resource takes group, version, plural and namespaced": lambda: bool(_kind()),
    "Resource is a value that a set can hold": lambda: len({_kind(), _kind()}) == 1,
}


@pytest.mark.parametrize("use", USES)
def test_kopf_still_has_what_discovery_needs_of_its_private_names(use: str) -> None:
    why = ""
    try:
        holds = USES[use]()
    except (ImportError, AttributeError, TypeError) as error:
        holds, why = False, f" ({error})"
    assert holds, f"{KOPF} breaks what discovery.py relies on: {use}{why}. Adapt discovery.py, or pin kopf."


@pytest.mark.parametrize(("module", "private"), [("discovery", [REFERENCES]), ("handlers", []), ("__main__", [])])
def test_only_discovery_imports_private_names_of_kopf(module: str, private: list[str]) -> None:
    names = [node.module or "" for node in ast.walk(_tree(module)) if isinstance(node, ast.ImportFrom)]
    assert [n for n in names if n.startswith("kopf.")] == private, "USES has to name what is taken from there"


def test_every_setting_that_we_give_kopf_is_one_that_it_has() -> None:
    """A setting that kopf has renamed would be written, and nobody would read it."""
    [function] = [n for n in ast.walk(_tree("handlers")) if getattr(n, "name", "") == "kopf_settings"]
    written = [t for n in ast.walk(function) if isinstance(n, ast.Assign) for t in n.targets]
    paths = [ast.unparse(t).partition("[")[0].split(".")[1:] for t in written]
    assert sum(map(len, paths)) > 20
    for path in paths:
        owner: Any = kopf.OperatorSettings()
        for part in path:
            text = f"{KOPF} has no setting {'.'.join(path)}, which handlers.py writes. Adapt it, or pin kopf."
            assert hasattr(owner, part), text
            owner = getattr(owner, part)


def test_kopf_starts_with_insights_of_ours() -> None:
    calls = [n for n in ast.walk(_tree("__main__")) if isinstance(n, ast.Call)]
    [call] = [n for n in calls if ast.unparse(n.func) == "kopf.operator"]
    unknown = {k.arg for k in call.keywords} - set(inspect.signature(kopf.operator).parameters)
    assert not unknown, f"kopf.operator() of {KOPF} does not take {unknown}, which __main__.py gives it."
