"""Writes: what a plan says becomes true, in one order. The status first, then the children, then the events.

The status carries the version of the job that the plan was made for, so a plan made for an old one changes
nothing. A run is claimed in the status before it is created, and its end is in the status before it is removed:
after a crash in between, the next pass reads what was intended.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from finetune_plan.model import Action, CreateRun, DeletePod, DeleteRun, Observed, Plan, RecordResult

from . import events
from .cache import Cache
from .cluster import Cluster, Kind
from .errors import AlreadyExists, ClusterError, Conflict, NameTaken
from .event_queue import EventQueue
from .identity import Json, Key, controller_of, key_of, log_fields
from .status_change import StatusChange

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applier:
    cluster: Cluster
    cache: Cache
    kind: str
    """Of the objects of runs."""
    events: EventQueue

    async def apply(self, observed: Observed, answer: Plan, change: StatusChange, now: str) -> bool:
        """Carry out a plan; True if that changed anything: watch events of our own writes trigger no pass.

        Raises ClusterError; the next pass plans again what was not done.
        """
        job = dict(observed.resource)
        key = key_of(job)
        if answer.record_result:
            await self._record_result(key, answer.record_result)
        patch = change.patch if change.wait_seconds is None else {}
        changed = False
        if patch:
            changed = await self._write_status(key, job, patch)
        elif answer.actions:
            await self._check_unchanged(key, job)
        try:
            for action in answer.actions:
                changed |= await self._execute(key, job, action)
        finally:
            if patch:
                self._emit_events(job, change, now)
        return changed

    async def report(self, key: Key, job: Json, change: StatusChange, now: str) -> None:
        """Write a status that comes from no plan, and its events. Raises ClusterError."""
        if await self._write_status(key, job, change.patch):
            self._emit_events(job, change, now)

    async def _record_result(self, key: Key, result: RecordResult) -> None:
        """Best effort: the job is complete even if the claim is gone or may not be written to."""
        claim = Key(key.namespace, result.claim)
        self.cache.claims.pop(claim, None)
        try:
            await self.cluster.annotate_claim(claim, result.annotation, result.text)
        except ClusterError as error:
            log.warning(
                "result not recorded on its claim",
                extra=log_fields(key) | {"claim": result.claim, "error": str(error)},
            )

    async def _write_status(self, key: Key, job: Json, patch: Json) -> bool:
        body = {"metadata": {"resourceVersion": job["metadata"]["resourceVersion"]}, "status": patch}
        answer = await self.cluster.patch_status(key, body)
        log.debug("status written", extra=log_fields(key, job["metadata"]["uid"]) | {"keys": sorted(patch)})
        return self.cache.jobs.put(answer)

    async def _check_unchanged(self, key: Key, job: Json) -> None:
        """Read the live job before an irreversible action: nothing else proves that it is as observed."""
        live = await self.cluster.get_job(key)
        if live is None:
            self.cache.jobs.forget(key)
            raise Conflict(f"{key} is gone")
        self.cache.jobs.put(live)
        if live["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise Conflict(f"{key} has changed")

    async def _execute(self, key: Key, job: Json, action: Action) -> bool:
        """True if that changed anything."""
        about = log_fields(key, job["metadata"]["uid"])
        if isinstance(action, DeleteRun):
            if changed := await self._delete(Key(key.namespace, action.name), action.uid):
                log.info("run deleted", extra=about | {"run": action.name})
            return changed
        if isinstance(action, DeletePod):
            await self._delete_pod(Key(key.namespace, action.name), action.uid)
            log.warning("pod deleted by force", extra=about | {"pod": action.name})
            return True
        if created := await self._create(key, job, action):
            log.info("run created", extra=about | {"run": action.manifest["metadata"]["name"]})
        return created

    async def _delete(self, run: Key, uid: str) -> bool:
        if going := await self.cluster.delete_run(run, uid):
            return self.cache.put(Kind.RUNS, going)
        self.cache.runs.forget(run)
        return True

    async def _delete_pod(self, pod: Key, uid: str) -> None:
        """Delete a pod by force, unless its node has reported it since: then the version is another one."""
        known = self.cache.pods.get(pod)
        left = await self.cluster.delete_pod(pod, uid, known.version) if known else None
        if left:
            self.cache.put(Kind.PODS, left)
        else:
            self.cache.pods.forget(pod)

    async def _create(self, key: Key, job: Json, action: CreateRun) -> bool:
        """Create a run unless it is there; True if it was us."""
        own = Key(key.namespace, action.manifest["metadata"]["name"])
        if action.previous and self._is_ours(await self._live(Key(key.namespace, action.previous)), job):
            raise Conflict(f"{action.previous} is still there")
        if self._is_free(await self._live(own), job):
            try:
                self.cache.put(Kind.RUNS, await self.cluster.create_run(dict(action.manifest)))
            except AlreadyExists:
                self._is_free(await self._live(own), job)
            else:
                return True
        return False

    async def _live(self, name: Key) -> Json | None:
        """The object of that name now; another owner may have it."""
        live = await self.cluster.get_run(name)
        if live is None:
            self.cache.runs.forget(name)
        else:
            self.cache.put(Kind.RUNS, live)
        return live

    def _is_free(self, live: Json | None, job: Json) -> bool:
        """Whether a run may have that name: not if ours has it already. Raises NameTaken if any other object has."""
        if live is None:
            return True
        if not self._is_ours(live, job):
            state = " and is being deleted" if "deletionTimestamp" in live["metadata"] else ""
            self._taken(live, f"not this job's{state}")
        if self.cache.runs.get(key_of(live)) is None:
            self._taken(live, "this job's, but cannot be read as a run of it")
        return False

    def _taken(self, live: Json, why: str) -> NoReturn:
        raise NameTaken(f"{self.kind} {key_of(live).name} has the name of the next run. It is {why}.")

    @staticmethod
    def _is_ours(live: Json | None, job: Json) -> bool:
        owner = controller_of(live) if live else None
        return owner is not None and owner.uid == job["metadata"]["uid"]

    def report_skipped(self, key: Key, job: Json, now: str) -> None:
        """Say on a job which objects that name it as their owner could not be read."""
        found = self.cache.skipped.take(key)
        self._emit(events.of_skipped(job, each.what, each.why, now) for each in found)

    def _emit_events(self, job: Json, change: StatusChange, now: str) -> None:
        self._emit(events.of_change(job, change.before, change.after, now))

    def _emit(self, found: Iterable[Json]) -> None:
        for event in found:
            self.events.put(event)
