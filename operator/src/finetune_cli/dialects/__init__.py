"""Job formats other than FinetuneJob YAML and JSON. One module a dialect, one entry in DIALECTS.

The module has two functions:

resource(text, file)    the FinetuneJob of a text; raises InvalidInput
rephrase(text)          a sentence about keys of a FinetuneJob, with the keys as the dialect spells them

Modules are imported when a file is in their dialect: most files are YAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

STDIN = "-"
_TOML_START = re.compile(r"^(?:\s|#.*\n)*(?:\[[^\]\n]+\]\s*(?:#.*)?(?:\n|$)|[A-Za-z0-9_-]+\s*=)")


@dataclass(frozen=True)
class Dialect:
    """A job format."""

    module: str
    """Its name in this package."""
    matches: Callable[[str, str], bool]
    """Whether a file, by its name ("-" for standard input) and text, is in this dialect."""

    def resource(self, text: str, file: str) -> dict[str, Any]:
        """The FinetuneJob of a text. Raises InvalidInput."""
        found: dict[str, Any] = self._import().resource(text, "job" if file == STDIN else file)
        return found

    def rephrase(self, text: str) -> str:
        """A sentence about keys of a FinetuneJob, with the keys as the dialect spells them."""
        return str(self._import().rephrase(text))

    def _import(self) -> Any:
        return import_module(f"{__name__}.{self.module}")


def _is_toml(file: str, text: str) -> bool:
    return file.endswith(".toml") or (file == STDIN and _TOML_START.match(text) is not None)


DIALECTS = (Dialect("toml_sections", _is_toml),)


def of(file: str, text: str) -> Dialect | None:
    """The dialect of a file; None for a FinetuneJob."""
    return next((dialect for dialect in DIALECTS if dialect.matches(file, text)), None)
