"""Objects that could not be read: skipped, counted, and logged once for each version.

Where one names a job of ours as its owner, an Event on that job says so (apply.py). All of it is bounded: a flood of
such objects costs neither memory nor, once the bounds are reached, more Events.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import NamedTuple, TypeVar

from . import metrics
from .identity import Json, Key, key_of
from .transform import Malformed

MOST = 1000
"""Versions that are remembered, and jobs for which something is to be said."""
MOST_OF_JOB = 10
"""Objects that are reported on one job until its next pass."""

K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger(__name__)


class Skipped(NamedTuple):
    """One object that was not read."""

    what: str
    """Its kind and name."""
    why: str


class SkippedObjects:
    """The versions that are known to be malformed, and what the next pass over a job has to report."""

    def __init__(self) -> None:
        self._versions: OrderedDict[tuple[str, Key], str] = OrderedDict()
        self._unreported: OrderedDict[Key, list[Skipped]] = OrderedDict()

    def skip(self, kind: str, raw: Json, error: Exception, job: Key | None = None) -> bool:
        """Take note of an object; False if this version is known. `job`: the one on which it is reported."""
        key, version = key_of(raw), _version(raw)
        if self._versions.get((kind, key)) == version:
            return False
        _remember(self._versions, (kind, key), version)
        why = str(error) if isinstance(error, Malformed) else f"{type(error).__name__} in one of its fields"
        metrics.MALFORMED.labels(kind=kind).inc()
        log.warning("malformed object skipped", extra={"kind": kind, "object": str(key), "error": why})
        if job and len(unreported := self._unreported.get(job, [])) < MOST_OF_JOB:
            _remember(self._unreported, job, [*unreported, Skipped(f"{raw.get('kind') or kind} {key.name}", why)])
        return True

    def take(self, job: Key) -> list[Skipped]:
        """What is to be reported on a job, once."""
        return self._unreported.pop(job, [])


def _version(raw: Json) -> str:
    metadata = raw.get("metadata")
    return str(metadata.get("resourceVersion", ""))[:32] if isinstance(metadata, dict) else ""


def _remember(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MOST:
        known.popitem(last=False)
