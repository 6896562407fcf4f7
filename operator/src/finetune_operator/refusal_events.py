"""Why the API server refused the pods of a run.

The backend's controller reports it in Events of one reason and nowhere else. A watch of these Events fills this store
(handlers.py); observe.py reads it. Anybody may create Events in a namespace of theirs: only those about a run of the
same namespace count, and the store is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from finetune_plan.backends.protocol import Backend
from finetune_plan.model import ObservedRun

from .identity import Json, Key, key_of
from .malformed import SkippedObjects
from .transform import SENTENCE_LENGTH, Malformed

MOST_EARLY = 1000
"""Refusals that are kept of runs that are not known yet."""


class Found(Protocol):
    """A run that is cached."""

    @property
    def owner(self) -> Key: ...

    @property
    def value(self) -> ObservedRun: ...


class _Refusal(NamedTuple):
    uid: str
    """Of the run."""
    event: str
    message: str


class RefusalEvents:
    """The last refusal of each run."""

    def __init__(self, backend: Backend, run: Callable[[Key], Found | None], skipped: SkippedObjects) -> None:
        self._backend, self._run, self._skipped = backend, run, skipped
        self._refusals: dict[Key, _Refusal] = {}
        self._early: OrderedDict[Key, _Refusal] = OrderedDict()

    def on_event(self, change: str | None, event: Json) -> Key | None:
        """Record an Event; returns the job of a known run for which it is news. Raises nothing."""
        try:
            return self._record(change, event)
        except Exception as error:  # noqa: BLE001 - anybody may write such Events
            self._skipped.skip("events", event, error)
            return None

    def of(self, run: Key, uid: str) -> str:
        """The last refusal of a run; empty if there was none."""
        found = (each.get(run) for each in (self._refusals, self._early))
        return next((each.message for each in found if each and each.uid == uid), "")

    def keep(self) -> None:
        """Forget runs that are gone."""
        every = self._early | self._refusals
        self._refusals = {run: each for run, each in every.items() if self._owner(run, each.uid)}

    def _record(self, change: str | None, event: Json) -> Key | None:
        about = self._backend.refused_run(event)
        if about is None:
            return None
        key, run = key_of(event), Key(key_of(event).namespace, _text(about.name))
        refusal = _Refusal(_text(about.uid), key.name, _text(event.get("message") or "")[:SENTENCE_LENGTH])
        owner, early = self._owner(run, refusal.uid), self._early.get(run)
        if owner and early and early.uid == refusal.uid:
            self._refusals.setdefault(run, self._early.pop(run))
        known = self._refusals.get(run)
        if change == "DELETED":
            if known and known.event == key.name:
                del self._refusals[run]
        elif owner:
            self._refusals[run] = refusal
        else:
            self._keep_early(run, refusal)
        return owner if self._refusals.get(run) != known else None

    def _owner(self, run: Key, uid: str) -> Key | None:
        """The job of a run that is known."""
        found = self._run(run)
        return found.owner if found and found.value.uid == uid else None

    def _keep_early(self, run: Key, refusal: _Refusal) -> None:
        self._early[run] = refusal
        if len(self._early) > MOST_EARLY:
            self._early.popitem(last=False)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Malformed("its message or what it is about is not text")
    return value
