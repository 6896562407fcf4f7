"""Everything that is wrong with a resource, at once: schema, rules, and what settings and trainer refuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api import check
from finetune_api.problems import Problem

from .resolve import Resolution, resolve
from .settings import PlanSettings


@dataclass(frozen=True)
class Verdict:
    """`resolution` is there whenever the job makes sense, even if this version refuses it."""

    problems: tuple[Problem, ...]
    resolution: Resolution | None

    @property
    def valid(self) -> bool:
        return not self.problems


def validate(resource: Mapping[str, Any], settings: PlanSettings) -> Verdict:
    """Judge a FinetuneJob given as plain data."""
    found = check.problems(resource)
    if found:
        return Verdict(tuple(found), None)
    resolution = resolve(resource, settings)
    return Verdict(resolution.problems, resolution)
