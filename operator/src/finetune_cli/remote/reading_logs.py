"""Logs of all pods of a job: once, or followed until the job is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue

import click

from .cluster import Cluster
from .errors import ApiError, NotFound, Unreachable, hindered, refused
from .lines import Line, Pod, merged, parsed, pod
from .server import Json
from .views import ended

PAUSE_SECONDS = 1.0
LAST_SECONDS = 5.0
"""How long logs are still read when the job is over: pods may go on until they are removed."""


@dataclass(frozen=True)
class Wanted:
    """What the options ask for."""

    node: int | None = None
    run: int | None = None
    tail: int | None = None

    def takes(self, found: Pod) -> bool:
        return self.node in (None, found.node) and self.run in (None, found.run)


def once(cluster: Cluster, job: Json, wanted: Wanted) -> Iterator[Line]:
    """The lines so far, pods merged by time. Raises Refused and Hindered where there is nothing to read."""
    pods = [p for p in map(pod, cluster.pods(job)) if wanted.takes(p)]
    newest = max((p.run for p in pods), default=0)
    chosen = sorted(p for p in pods if p.run == newest)
    if not chosen:
        raise _nothing(job, wanted)
    if all(p.phase == "Pending" for p in chosen):
        raise _not_started(job["metadata"]["name"], "The job's pods have not started yet.")
    return merged([_log(cluster, each, wanted) for each in chosen])


def _log(cluster: Cluster, found: Pod, wanted: Wanted) -> list[Line]:
    tail = {} if wanted.tail is None else {"tailLines": str(wanted.tail)}
    try:
        with cluster.log(found.name, timestamps="true", **tail) as lines:
            return [parsed(line, found.node) for line in lines]
    except ApiError as error:
        if error.status == 403:
            raise
        click.echo(f"[node {found.node}] has no log: {error.message}", err=True)
        return []


def _nothing(job: Json, wanted: Wanted) -> Exception:
    name = job["metadata"]["name"]
    path, current = f"finetunejob {name}", (job.get("status") or {}).get("run")
    if not current:
        return _not_started(name, "The job has no pods yet.")
    if wanted.run is not None and wanted.run != current:
        message = f"The pods of run {wanted.run} are gone, and their logs with them; the current run is {current}."
        return refused(path, "NoSuchRun", message, "Leave --run out.")
    if wanted.node is not None:
        return refused(path, "NoSuchNode", f"Run {current} has no pod for node {wanted.node}.", "Nodes count from 0.")
    return hindered(path, "PodsGone", f"Run {current} has no pods any more, and no logs.",
                    f"`finetune status {name}` has the last words; records.jsonl lies in the output.")  # fmt: skip


def _not_started(name: str, message: str) -> Exception:
    return hindered(f"finetunejob {name}", "NotStarted", message, f"`finetune diagnose {name}` says why.")


def follow(cluster: Cluster, job: Json, wanted: Wanted) -> Iterator[Line]:
    """Lines as they arrive, until the job is over and its pods have nothing more to say."""
    return _Following(cluster, job, wanted).lines()


class _Following:
    """Threads that read the logs of pods as these come and go; the lines come out of one queue."""

    def __init__(self, cluster: Cluster, job: Json, wanted: Wanted) -> None:
        self._cluster, self._job, self._wanted = cluster, job, wanted
        self._lines: SimpleQueue[Line | Exception | None] = SimpleQueue()
        self._readers: dict[str, threading.Thread] = {}
        self._newest: dict[str, datetime] = {}
        """Times of the last lines, by UID of the pod."""

    def lines(self) -> Iterator[Line]:
        self._start(self._watch_pods)
        self._start(self._wait_for_the_end)
        while (item := self._lines.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(work,), daemon=True)
        thread.start()
        return thread

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - raised again by lines()
            self._lines.put(error)

    def _watch_pods(self) -> None:
        for raws in self._cluster.pods_over_time(self._job, _say):
            for found in map(pod, raws):
                begun = found.phase == "Running" or found.over
                if begun and self._wanted.takes(found) and found.uid not in self._readers:
                    self._readers[found.uid] = self._start(partial(self._read, found))

    def _wait_for_the_end(self) -> None:
        name, uid = self._job["metadata"]["name"], self._job["metadata"]["uid"]
        for job in self._cluster.job_over_time(name):
            if job is None or job["metadata"]["uid"] != uid or ended(job):
                break
        deadline = time.monotonic() + LAST_SECONDS
        time.sleep(PAUSE_SECONDS)  # for pods that began and ended at once
        for reader in list(self._readers.values()):
            reader.join(max(0.0, deadline - time.monotonic()))
        self._lines.put(None)

    def _read(self, found: Pod) -> None:
        """Follow one pod's log to its end, over broken connections."""
        while True:
            try:
                self._read_once(found)
                if self._is_over(found):
                    return
            except NotFound:
                return
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.status == 403:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _read_once(self, found: Pod) -> None:
        """Lines after the newest one that we have; none twice, although the server takes whole seconds only."""
        query, last = {"follow": "true", "timestamps": "true"}, self._newest.get(found.uid)
        if last is not None:
            query["sinceTime"] = last.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        elif self._wanted.tail is not None:
            query["tailLines"] = str(self._wanted.tail)
        with self._cluster.log(found.name, **query) as lines:
            for line in (parsed(each, found.node) for each in lines):
                if last is None or line.time > last:
                    self._lines.put(line)
                    self._newest[found.uid] = line.time

    def _is_over(self, found: Pod) -> bool:
        raw = self._cluster.find("v1", "pods", found.name)
        return raw is None or raw["metadata"]["uid"] != found.uid or pod(raw).over


def _say(why: str) -> None:
    click.echo(f"no news: {why}; trying again", err=True)
