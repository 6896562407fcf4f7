"""Lists that arrive page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_page(query: Mapping[str, str], limit: int) -> dict[str, str]:
    """Query of the first page of a list."""
    return {**query, "limit": str(limit)}


def next_page(query: Mapping[str, str], answer: Mapping[str, Any]) -> dict[str, str] | None:
    """Query of the page after `answer`, which `query` fetched; None after the last page."""
    token = answer["metadata"].get("continue")
    return {**query, "continue": token} if token else None
