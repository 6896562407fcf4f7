"""Job formats other than FinetuneJob YAML and JSON. One module a dialect, one entry in DIALECTS.

The module has two functions:

resource(text, file)    the FinetuneJob of a text; raises InvalidInput
rephrase(text)          a sentence about keys of a FinetuneJob, with the keys as the dialect spells them

Modules are imported when a file is in their dialect: most files are YAML.
"""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType

STDIN = "-"
_TOML_START = re.compile(r"^(?:\s|#.*\n)*(?:\[[^\]\n]+\]\s*(?:#.*)?(?:\n|$)|[A-Za-z0-9_-]+\s*=)")


def _is_toml(file: str, text: str) -> bool:
    return file.endswith(".toml") or (file == STDIN and _TOML_START.match(text) is not None)


DIALECTS = {"toml_sections": _is_toml}
"""Module of this package -> whether a file, by its name ("-" for standard input) and text, is in its dialect."""


def of(file: str, text: str) -> ModuleType | None:
    """The module of a file's dialect; None for a FinetuneJob."""
    name = next((name for name, matches in DIALECTS.items() if matches(file, text)), None)
    return import_module(f"{__name__}.{name}") if name else None
