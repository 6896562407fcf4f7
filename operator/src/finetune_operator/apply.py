"""Writes: what a plan says becomes true, in one order. The status first, then the children, then the events.

The status carries the version of the job that the plan was made for, so a plan made for an old one changes
nothing. A run is claimed in the status before it is created, and its end is in the status before it is removed:
after a crash in between, the next pass reads what was intended.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from finetune_plan.model import CreateRun, DeleteRun, Observed, Plan, RecordResult

from . import events
from .cache import Cache
from .cluster import Cluster
from .errors import AlreadyExists, Conflict, NotFound, Refused
from .event_queue import EventQueue
from .identity import Json, Key, key_of, log_fields
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
        changed = bool(answer.actions)
        if patch:
            changed |= await self._write_status(key, job, patch)
        elif answer.actions:
            await self._check_unchanged(key, job)
        try:
            for action in answer.actions:
                await self._execute(key, job, action)
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
        except (NotFound, Refused) as error:
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

    async def _execute(self, key: Key, job: Json, action: CreateRun | DeleteRun) -> None:
        about = log_fields(key, job["metadata"]["uid"])
        if isinstance(action, DeleteRun):
            await self._delete(Key(key.namespace, action.name), action.uid)
            log.info("run deleted", extra=about | {"run": action.name})
        elif await self._create(key, job, action):
            log.info("run created", extra=about | {"run": action.manifest["metadata"]["name"]})

    async def _delete(self, run: Key, uid: str) -> None:
        if going := await self.cluster.delete_run(run, uid):
            self.cache.runs.put(going)
        else:
            self.cache.runs.forget(run)

    async def _create(self, key: Key, job: Json, action: CreateRun) -> bool:
        """Create a run unless it is there; True if it was us."""
        own = Key(key.namespace, action.manifest["metadata"]["name"])
        if action.previous and await self._exists(Key(key.namespace, action.previous), job):
            raise Conflict(f"{action.previous} is still there")
        if await self._exists(own, job):
            return False
        try:
            self.cache.runs.put(await self.cluster.create_run(dict(action.manifest)))
        except AlreadyExists:
            await self._exists(own, job)
            return False
        return True

    async def _exists(self, name: Key, job: Json) -> bool:
        """Whether our run of that name exists now, live. Raises Refused if another owner holds the name."""
        live = await self.cluster.get_run(name)
        if live is None:
            self.cache.runs.forget(name)
            return False
        owners = {o["uid"] for o in live["metadata"].get("ownerReferences") or ()}
        if job["metadata"]["uid"] not in owners:
            raise Refused(f"A {self.kind} {name.name} that is not this job's exists. Delete it, or rename the job.")
        self.cache.runs.put(live)
        return True

    def _emit_events(self, job: Json, change: StatusChange, now: str) -> None:
        for event in events.of_change(job, change.before, change.after, now):
            self.events.put(event)
