"""The page about networks lists every profile as it is."""

from __future__ import annotations

import re

from docs.pages import ROOT
from finetune_plan import network_files
from finetune_plan.network_profile import NetworkProfile, profile_of

PAGE = (ROOT / "docs/networks.md").read_text()


def row(name: str) -> str:
    profile = profile_of(name, {})
    values = ", ".join(f"`{each}`" for each in profile.parameters) or "none"
    return f"| `{name}` | {profile.description.rstrip('.')} | {values} | {profile.pod_security} |"


def test_the_page_has_a_row_for_every_profile_and_no_other() -> None:
    assert re.findall(r"^\| .* \| (?:restricted|baseline|privileged) \|$", PAGE, re.MULTILINE) == [
        row(name) for name in network_files.names()
    ]


def test_the_page_names_every_field() -> None:
    table = PAGE.split("| field |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= {
        field.alias or name for name, field in NetworkProfile.model_fields.items()
    }
