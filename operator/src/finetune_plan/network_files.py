"""The network profiles that come with the operator: one file each in networks/."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("networks")


@cache
def names() -> tuple[str, ...]:
    """Their names."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def data(name: str) -> Mapping[str, Any]:
    """What the file says; network_profile.py has its form."""
    import yaml  # noqa: PLC0415 - most jobs need no profile

    found: Mapping[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return found
