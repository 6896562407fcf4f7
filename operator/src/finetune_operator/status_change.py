"""Pure arithmetic on statuses as JSON: what to write, and whether it can wait."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .identity import Json


@dataclass(frozen=True)
class StatusChange:
    """From the status as it is to the status as it should be."""

    before: Json
    after: Json
    wait_seconds: float | None = None
    """Seconds to wait before the write; None: write now."""

    @cached_property
    def patch(self) -> Json:
        return merge_patch(self.before, self.after)

    @property
    def can_wait(self) -> bool:
        """Whether the statuses differ only in progress, active time and text. When pods went is known only now."""
        gone = _is_bound(self.before) and not _is_bound(self.after)
        return not gone and _without_text(self.before) == _without_text(self.after)


def merge_patch(before: Json, after: Json) -> Json:
    """The JSON merge patch (RFC 7386) that turns one document into the other; empty if they are equal."""
    patch: Json = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if old == value:
            continue
        patch[key] = merge_patch(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return patch


def _without_text(status: Json) -> dict[str, Any]:
    rest = {k: v for k, v in status.items() if k not in ("progress", "active", "conditions")}
    return rest | {"conditions": {c["type"]: c["status"] for c in status.get("conditions") or ()}}


def _is_bound(status: Json) -> bool:
    return "since" in (status.get("active") or {})
