"""A cache of objects, reduced to what is needed: filled by watches, by our own writes and by the resync.

A version never replaces a newer one, so an event that comes late, or a list from a server that lags, does no harm.
Irreversible actions do not rely on it: apply.py reads the live object first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetune_api.resource import names
from finetune_api.resource.status import Phase
from finetune_plan.backends.protocol import Backend
from finetune_plan.model import ObservedClaim, ObservedPod, ObservedRun

from . import transform
from .cluster import Kind
from .identity import Json, Key, job_of, key_of, version_of
from .refusal_events import RefusalEvents
from .transform import CachedJob

T = TypeVar("T")

_OVER = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    version: int
    owner: str
    """UID of the job; a job owns itself."""
    value: T


class Store(Generic[T]):
    """Objects of one kind by key, and by the job that owns them."""

    def __init__(
        self, read: Callable[[Json], T], owner: Callable[[Json], str], sort: Callable[[T], str] = lambda _: ""
    ) -> None:
        self._read, self._owner, self._sort = read, owner, sort
        self.counts: Counter[str] = Counter()
        """How many objects there are of each sort."""
        self._entries: dict[Key, Entry[T]] = {}
        self._owned: dict[str, set[Key]] = {}
        self._gone: dict[Key, int] = {}

    def put(self, raw: Json) -> bool:
        """Take a version of an object; False if a newer one, or its end, is known."""
        key, version = key_of(raw), version_of(raw)
        known = self._entries.get(key)
        if version <= self._gone.get(key, 0) or (known and version <= known.version):
            return False
        self._forget(key)
        entry = self._entries[key] = Entry(version, self._owner(raw), self._read(raw))
        self._owned.setdefault(entry.owner, set()).add(key)
        self.counts[self._sort(entry.value)] += 1
        return True

    def drop(self, raw: Json) -> None:
        """The object was deleted."""
        key, version = key_of(raw), version_of(raw)
        self._gone[key] = version
        known = self._entries.get(key)
        if known and known.version <= version:
            self._forget(key)

    def keep(self, listed: set[Key], version: int) -> list[Key]:
        """Forget what a list of that version does not hold; the keys that were forgotten."""
        gone = self._forget_unlisted(self._entries, listed, version)
        self._gone.clear()  # a deletion only has to outlive the list during which it happened
        return gone

    def keep_of(self, owner: str, listed: set[Key], version: int) -> None:
        """Likewise, of a list of one job's objects."""
        self._forget_unlisted(self._owned.get(owner, ()), listed, version)

    def forget(self, key: Key) -> None:
        """The object is known to be gone."""
        self._forget(key)

    def get(self, key: Key) -> Entry[T] | None:
        return self._entries.get(key)

    def of(self, owner: str) -> tuple[T, ...]:
        """All objects of a job, by name."""
        return tuple(self._entries[k].value for k in sorted(self._owned.get(owner, ())))

    def items(self) -> Iterable[tuple[Key, Entry[T]]]:
        return self._entries.items()

    def _forget_unlisted(self, known: Iterable[Key], listed: set[Key], version: int) -> list[Key]:
        gone = [key for key in known if key not in listed and self._entries[key].version <= version]
        for key in gone:
            self._forget(key)
        return gone

    def _forget(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self.counts[self._sort(entry.value)] -= 1
        keys = self._owned[entry.owner]
        keys.discard(key)
        if not keys:
            del self._owned[entry.owner]


class Cache:
    """Jobs, runs and pods."""

    def __init__(self, backend: Backend) -> None:
        self.jobs: Store[CachedJob] = Store(
            transform.job, lambda raw: str(raw["metadata"]["uid"]), lambda job: job.phase
        )
        self.runs: Store[ObservedRun] = Store(backend.observe, _owner_label)
        self.pods: Store[ObservedPod] = Store(lambda raw: transform.pod(raw, backend), _owner_label)
        self.claims: dict[Key, tuple[float, ObservedClaim]] = {}
        """Claims, and when they were read: not watched, and cached for a moment only."""
        self.refusals = RefusalEvents(backend)

    def job(self, key: Key) -> Json | None:
        """The job as it was seen last, as a dict of its own."""
        entry = self.jobs.get(key)
        if entry is None:
            return None
        found: Json = json.loads(entry.value.text)
        return found

    def unfinished(self) -> list[Key]:
        """Jobs that have not ended."""
        return [key for key, entry in self.jobs.items() if not entry.value.ended]

    def phases(self) -> Mapping[str, int]:
        """Number of jobs by phase."""
        return +self.jobs.counts

    def working(self) -> int:
        """Number of jobs that are neither over nor refused."""
        return sum(n for phase, n in self.jobs.counts.items() if phase not in _OVER)

    def put(self, kind: Kind, raw: Json) -> bool:
        return self._store(kind).put(raw)

    def drop(self, kind: Kind, raw: Json) -> None:
        self._store(kind).drop(raw)

    def keep(self, kind: Kind, listed: set[Key], version: int) -> list[Key]:
        return self._store(kind).keep(listed, version)

    def keep_of(self, kind: Kind, owner: str, listed: set[Key], version: int) -> None:
        self._store(kind).keep_of(owner, listed, version)

    def _store(self, kind: Kind) -> Store[CachedJob] | Store[ObservedRun] | Store[ObservedPod]:
        if kind is Kind.JOBS:
            return self.jobs
        return self.runs if kind is Kind.RUNS else self.pods


def subject(kind: Kind, raw: Json) -> Key | None:
    """The job that an object is about."""
    return key_of(raw) if kind is Kind.JOBS else job_of(raw)


def _owner_label(raw: Json) -> str:
    return str((raw["metadata"].get("labels") or {}).get(names.JOB_UID_LABEL, ""))
