"""The pages of the documentation, and the fenced blocks in them.

The info string of a fence says what a block is and how it is tested. Blocks of shell commands and YAML need a known
one, so that nobody adds a command that no test runs without saying why:

    sh            runs here, from the repository's root or a folder like it, and succeeds
    sh refused    runs here and ends with exit code 2
    sh cluster    needs a cluster
    sh minutes    takes minutes, or changes this machine
    yaml          whole manifests of Kubernetes
    yaml FILE     the same, and equal to that file
    yaml spec     keys of a FinetuneJob's spec
    yaml values   values of the Helm chart
    jsonl         good rows
    jsonl bad     bad rows, each for itself
    text          pictures and words, not tested
    text output   exactly what the commands before it print
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
KNOWN = {
    "sh",
    "sh refused",
    "sh cluster",
    "sh minutes",
    "yaml",
    "yaml spec",
    "yaml values",
    "jsonl",
    "jsonl bad",
    "text",
    "text output",
}
UNMARKED = {"docs/cli.md": "sh cluster"}
"""Pages whose commands all need the same."""

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    page: str
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    """Every fenced block of every page."""
    for path in PAGES:
        page, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            info = found[1].strip()
            if info == "sh":
                info = UNMARKED.get(page, info)
            yield Block(page, text.count("\n", 0, found.start()) + 1, info, found[2])


def of(*infos: str) -> list[Block]:
    """The blocks with one of these info strings."""
    return [block for block in blocks() if block.info in infos]


def outputs() -> dict[Block, str]:
    """Commands -> what the page says that they print."""
    every = list(blocks())
    return {before: block.text for before, block in pairwise(every) if block.info == "text output"}


def copies() -> list[Block]:
    """The blocks that show a file."""
    return [block for block in blocks() if block.info.startswith("yaml ") and block.info not in KNOWN]
