"""Links of the pages lead somewhere, and the pages that list things list all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pages import PAGES, ROOT
from finetune_api.codegen import pages
from finetune_api.resource import conditions
from finetune_api.resource.reasons import REASONS
from finetune_api.runtime import exits

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
TROUBLESHOOTING = (ROOT / "docs/troubleshooting.md").read_text()
OF_THE_PLAN = (
    "UnknownGpuType", "ServiceAccountNotAllowed", "Unsupported", "BadExpression", "NetworkUndecided",
    "UnknownNetwork", "NetworkIncomplete", "NetworkNotAllowed", "NetworkContradiction",
)  # fmt: skip
"""Reasons of refusals that depend on settings and version, so no rule has them."""


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        yield from ((page, target) for target in LINK.findall(text) if "://" not in target)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), sorted(set(links())), ids=lambda part: getattr(part, "name", part))
def test_a_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists(), f"{page}: {target}"
    assert not anchor or anchor in anchors(file), f"{page}: {target}"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs/index.md"
    reached, new = {index}, {index}
    while new:
        targets = {(p.parent / t.partition("#")[0]).resolve() for p, t in links() if p in new and t[0] != "#"}
        new = {t for t in targets if t.suffix == ".md"} - reached
        reached |= new
    apart = {"0000-template.md"}
    assert {p for p in PAGES if p.parent != ROOT and p.name not in apart and p.parent.name != "adr"} <= reached


@pytest.mark.parametrize("reason", sorted({r.name for r in REASONS} | {m.reason for m in exits.MEANINGS.values()}))
def test_troubleshooting_knows_every_reason_of_a_condition(reason: str) -> None:
    assert f"`{reason}`" in TROUBLESHOOTING


@pytest.mark.parametrize("reason", OF_THE_PLAN)
def test_troubleshooting_knows_refusals_that_depend_on_the_cluster(reason: str) -> None:
    assert f"`{reason}`" in TROUBLESHOOTING


def test_every_condition_has_a_section_in_the_reference() -> None:
    names = {value for name, value in vars(conditions).items() if name.isupper()}
    assert set(re.findall(r"^## (\w+)$", pages.conditions_page(), re.MULTILINE)) == names
