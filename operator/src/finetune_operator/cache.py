"""A cache of objects, reduced to what is needed: filled by watches, by our own writes and by the resync.

Children are a job's by namespace, by their chain of controllers up to its UID, and by the names that we and the
backend give. The chain is followed when it is asked for, so the order in which objects arrive does not matter.

A version never replaces a newer one, so an event that comes late, or a list from a server that lags, does no harm.
Irreversible actions do not rely on it: apply.py reads the live object first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

from finetune_api.resource import names
from finetune_api.resource.status import Phase, Status
from finetune_plan import statuses
from finetune_plan.backends.protocol import Backend
from finetune_plan.model import ObservedClaim, ObservedPod, ObservedRun

from . import transform
from .cluster import Kind
from .identity import Json, Key, controller_of, key_of, version_of
from .malformed import SkippedObjects
from .refusal_events import RefusalEvents
from .transform import CachedJob, Owned

T = TypeVar("T")

_OVER = (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    version: int
    owner: Key
    """What controls it; a job owns itself."""
    uid: str
    """Of the owner."""
    value: T


class Children(NamedTuple):
    """What belongs to a job."""

    runs: tuple[ObservedRun, ...]
    pods: tuple[ObservedPod, ...]


class Store(Generic[T]):
    """Objects of one kind by key, by what controls them, and by the job that `job` makes of the controller's name.

    Of those for which `read` is None, nothing is kept.
    """

    def __init__(
        self,
        read: Callable[[Json], Owned[T] | None],
        sort: Callable[[T], str] = lambda _: "",
        job: Callable[[Key], Key] = lambda owner: owner,
    ) -> None:
        self._read, self._sort, self._job = read, sort, job
        self.counts: Counter[str] = Counter()
        """How many objects there are of each sort."""
        self._entries: dict[Key, Entry[T]] = {}
        self._owned: dict[Key, set[Key]] = {}
        self._owners: dict[Key, set[Key]] = {}
        """Controllers by job."""
        self._gone: dict[Key, int] = {}

    def put(self, raw: Json) -> bool:
        """Take a version of an object; False if a newer one or its end is known, or if no owner counts."""
        key, version = key_of(raw), version_of(raw)
        known = self._entries.get(key)
        if version <= self._gone.get(key, 0) or (known and version <= known.version):
            return False
        found = self._read(raw)
        self._forget(key)
        if found is None:
            return known is not None
        entry = self._entries[key] = Entry(version, found.owner, found.uid, found.value)
        self._owned.setdefault(entry.owner, set()).add(key)
        self._owners.setdefault(self._job(entry.owner), set()).add(entry.owner)
        self.counts[self._sort(entry.value)] += 1
        return True

    def drop(self, raw: Json) -> None:
        """The object was deleted."""
        key, version = key_of(raw), version_of(raw)
        known = self._entries.get(key)
        if known is None and self._read(raw) is None:
            return
        self._gone[key] = version
        if known and known.version <= version:
            self._forget(key)

    def keep(self, listed: set[Key], version: int) -> list[Key]:
        """Forget what a list of that version does not hold; the keys that were forgotten."""
        gone = self._forget_unlisted(self._entries, listed, version)
        self._gone.clear()  # a deletion only has to outlive the list during which it happened
        return gone

    def keep_of(self, job: Key, listed: set[Key], version: int) -> None:
        """Likewise, of a list of the objects of all jobs of that name."""
        known = [key for owner in self._owners.get(job, ()) for key in self._owned[owner]]
        self._forget_unlisted(known, listed, version)

    def forget(self, key: Key) -> None:
        """The object is known to be gone."""
        self._forget(key)

    def get(self, key: Key) -> Entry[T] | None:
        return self._entries.get(key)

    def of(self, owner: Key) -> tuple[Entry[T], ...]:
        """All objects that name that owner, by their own names; it may be another object with that name."""
        return tuple(self._entries[k] for k in sorted(self._owned.get(owner, ())))

    def named(self, job: Key) -> tuple[Entry[T], ...]:
        """All objects whose controllers are named as those of a job of that name are."""
        return tuple(each for owner in sorted(self._owners.get(job, ())) for each in self.of(owner))

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
            owners = self._owners[self._job(entry.owner)]
            owners.discard(entry.owner)
            if not owners:
                del self._owners[self._job(entry.owner)]


class Cache:
    """Jobs, runs and pods."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.jobs: Store[CachedJob] = Store(transform.owned_job, lambda job: job.phase)
        self.runs: Store[ObservedRun] = Store(lambda raw: transform.owned_run(raw, backend))
        self.pods: Store[ObservedPod] = Store(lambda raw: transform.owned_pod(raw, backend), job=_job_of_run)
        self.skipped = SkippedObjects()
        self.claims: dict[Key, tuple[float, ObservedClaim]] = {}
        """Claims, and when they were read: not watched, and cached for a moment only."""
        self.refusals = RefusalEvents(backend, self.runs.get, self.skipped)

    def job(self, key: Key) -> Json | None:
        """The job as it was seen last, as a dict of its own."""
        entry = self.jobs.get(key)
        if entry is None:
            return None
        found: Json = json.loads(entry.value.text)
        return found

    def children(self, job: Json) -> Children:
        """The runs and pods of a job that is cached."""
        key, uid = key_of(job), job["metadata"]["uid"]
        runs = tuple(each.value for each in self.runs.of(key) if each.uid == uid)
        pods = [pod for run in runs for pod in self._pods_of(Key(key.namespace, run.name), run)]
        return Children(runs, (*pods, *self._pods_left(job, runs)))

    def predecessors(self, job: Json) -> Children:
        """What other jobs of that name have left: they were deleted, and their pods may still write to the output."""
        key, uid = key_of(job), job["metadata"]["uid"]
        own = {each.value.uid for each in self.runs.of(key) if each.uid == uid}
        return Children(
            tuple(each.value for each in self.runs.of(key) if each.uid != uid),
            tuple(each.value for each in self.pods.named(key) if each.uid not in own and _is_of_a_run(each)),
        )

    def _pods_of(self, run: Key, found: ObservedRun) -> list[ObservedPod]:
        return [replace(e.value, run=found.number) for e in self.pods.of(run) if e.uid == found.uid]

    def _pods_left(self, job: Json, runs: tuple[ObservedRun, ...]) -> list[ObservedPod]:
        """Pods whose run was deleted before them: nothing proves any more whose they were, so they only hold back the
        next run."""
        number = job["status"].get("run")
        last = _last_run(job)
        left = [each for each in self.pods.of(last) if _is_of_a_run(each)]
        if number is None or any(run.name == last.name for run in runs) or not left:
            return []
        if statuses.is_claimed(Status.model_validate(job["status"])):
            return []
        unproven = {"run": number, "exit_code": None, "report": None, "disruption": ""}
        return [replace(each.value, **unproven) for each in left]

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
        """Take a version of an object; whether it says anything new. Raises nothing, whatever the object is."""
        try:
            return self._store(kind).put(raw)
        except Exception as error:  # noqa: BLE001 - anybody may write such objects
            return self.skipped.skip(kind, raw, error, self.subject(kind, raw))

    def drop(self, kind: Kind, raw: Json) -> None:
        """The object was deleted. Raises nothing."""
        try:
            self._store(kind).drop(raw)
        except Exception as error:  # noqa: BLE001 - likewise
            self.skipped.skip(kind, raw, error)

    def keep(self, kind: Kind, listed: set[Key], version: int) -> list[Key]:
        return self._store(kind).keep(listed, version)

    def keep_of(self, kind: Kind, job: Key, listed: set[Key], version: int) -> None:
        """Likewise, of a list of the objects of all jobs of that name."""
        self._store(kind).keep_of(job, listed, version)

    def subject(self, kind: Kind, raw: Json) -> Key | None:
        """The job that an object is about, by its chain of controllers; None if it is about none that is known."""
        try:
            key = self._job_of(kind, raw)
        except Exception:  # noqa: BLE001 - `put` has reported it
            return None
        return key if key and (kind is Kind.JOBS or self.jobs.get(key)) else None

    def _job_of(self, kind: Kind, raw: Json) -> Key | None:
        if kind is Kind.JOBS:
            return key_of(raw)
        owner = controller_of(raw)
        if owner is None:
            return None
        if kind is Kind.RUNS:
            found = self.jobs.get(owner.key)
            return owner.key if found and found.uid == owner.uid else None
        run = self.runs.get(owner.key)
        if run is None:  # it is gone, or its first event is still under way
            return _job_of_run(owner.key)
        return run.owner if run.value.uid == owner.uid else None

    def _store(self, kind: Kind) -> Store[CachedJob] | Store[ObservedRun] | Store[ObservedPod]:
        if kind is Kind.JOBS:
            return self.jobs
        return self.runs if kind is Kind.RUNS else self.pods


def _job_of_run(run: Key) -> Key:
    return Key(run.namespace, names.job_of_run(run.name))


def _is_of_a_run(pod: Entry[ObservedPod]) -> bool:
    """Whether its controller, which is unknown, was a run: its pods have the number in its name as a label. Anybody
    may have another object of such a name."""
    number = pod.value.run
    return number > 0 and pod.owner.name == names.run_name(names.job_of_run(pod.owner.name), number)


def _last_run(job: Json) -> Key:
    """The run that the status of a job names."""
    key = key_of(job)
    return Key(key.namespace, names.run_name(key.name, job["status"].get("run") or 0))
