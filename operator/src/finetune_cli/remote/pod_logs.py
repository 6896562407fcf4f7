"""Logs of all pods of a job: once, or followed until the job has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue

import click

from .api_client import Json
from .cluster import ClusterClient
from .errors import ApiError, Forbidden, NotFound, Unreachable, failed, invalid
from .log_lines import LogLine, LogPod, log_pod, merge, parse
from .views import has_ended

PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries to read a log that cannot be read."""
DRAIN_SECONDS = 5.0
"""How long logs are still read after the job has ended: pods may write until they are deleted."""


@dataclass(frozen=True)
class Selection:
    """The pods and lines that the options select."""

    node: int | None = None
    run: int | None = None
    tail: int | None = None

    def selects(self, found: LogPod) -> bool:
        return self.node in (None, found.node) and self.run in (None, found.run)


def read(cluster: ClusterClient, job: Json, selection: Selection) -> Iterator[LogLine]:
    """The lines so far, merged by time. Raises CommandError if there is nothing to read."""
    pods = [p for p in map(log_pod, cluster.pods(job)) if selection.selects(p)]
    newest = max((p.run for p in pods), default=0)
    chosen = sorted(p for p in pods if p.run == newest)
    if not chosen:
        raise _nothing(job, selection)
    if all(p.phase == "Pending" for p in chosen):
        raise _not_started(job["metadata"]["name"], "The job's pods have not started yet.")
    return merge([_log(cluster, each, selection) for each in chosen])


def _log(cluster: ClusterClient, found: LogPod, selection: Selection) -> list[LogLine]:
    tail = {} if selection.tail is None else {"tailLines": str(selection.tail)}
    try:
        with cluster.log(found.name, timestamps="true", **tail) as lines:
            return [parse(line, found.node) for line in lines]
    except Forbidden:
        raise
    except ApiError as error:
        click.echo(f"The log of node {found.node} cannot be read: {error.message}", err=True)
        return []


def _nothing(job: Json, selection: Selection) -> Exception:
    name = job["metadata"]["name"]
    path, current = f"finetunejob {name}", (job.get("status") or {}).get("run")
    if not current:
        return _not_started(name, "The job has no pods yet.")
    if selection.run is not None and selection.run != current:
        message = f"The pods of run {selection.run} were deleted with their logs. The current run is {current}."
        return invalid(path, "NoSuchRun", message, "Omit --run.")
    if selection.node is not None:
        message = f"Run {current} has no node {selection.node}."
        return invalid(path, "NoSuchNode", message, "Nodes are numbered from 0.")
    remedy = f"`finetune status {name}` shows the final status; records.jsonl in the output has the records."
    return failed(path, "PodsGone", f"The pods of run {current} were deleted with their logs.", remedy)


def _not_started(name: str, message: str) -> Exception:
    return failed(f"finetunejob {name}", "NotStarted", message, f"`finetune diagnose {name}` shows the cause.")


def follow(cluster: ClusterClient, job: Json, selection: Selection) -> Iterator[LogLine]:
    """Lines as they arrive, until the job has ended and its pods write no more."""
    return _Follower(cluster, job, selection).lines()


class _Follower:
    """One thread per pod reads its log, and all put their lines into one queue."""

    def __init__(self, cluster: ClusterClient, job: Json, selection: Selection) -> None:
        self._cluster, self._job, self._selection = cluster, job, selection
        self._lines: SimpleQueue[LogLine | Exception | None] = SimpleQueue()
        self._readers: dict[str, threading.Thread] = {}
        self._newest: dict[str, datetime] = {}
        """Time of the last line, by UID of the pod."""

    def lines(self) -> Iterator[LogLine]:
        self._start(self._watch_pods)
        self._start(self._wait_for_end)
        while (item := self._lines.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def _start(self, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(target,), daemon=True)
        thread.start()
        return thread

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # noqa: BLE001 - raised again by lines()
            self._lines.put(error)

    def _watch_pods(self) -> None:
        message = "connection lost: {}; retrying"
        for pods in self._cluster.watch_pods(self._job, lambda why: click.echo(message.format(why), err=True)):
            for found in map(log_pod, pods):
                started = found.phase == "Running" or found.has_ended
                if started and self._selection.selects(found) and found.uid not in self._readers:
                    self._readers[found.uid] = self._start(partial(self._read, found))

    def _wait_for_end(self) -> None:
        name, uid = self._job["metadata"]["name"], self._job["metadata"]["uid"]
        for job in self._cluster.watch_job(name):
            if job is None or job["metadata"]["uid"] != uid or has_ended(job):
                break
        deadline = time.monotonic() + DRAIN_SECONDS
        time.sleep(PAUSE_SECONDS)  # for pods that start and end in this moment
        for reader in list(self._readers.values()):
            reader.join(max(0.0, deadline - time.monotonic()))
        self._lines.put(None)

    def _read(self, found: LogPod) -> None:
        """Follow one pod's log to its end, across broken connections; what lasts longer is said."""
        failures = 0
        while True:
            try:
                self._read_once(found)
                if self._has_ended(found):
                    return
                failures = 0
            except NotFound:
                return
            except Forbidden:
                raise
            except (ApiError, Unreachable) as error:
                failures += 1
                if failures == 2:
                    click.echo(f"the log of node {found.node} cannot be read: {error}; retrying", err=True)
            time.sleep(min(PAUSE_SECONDS * 2 ** max(0, failures - 1), LONGEST_PAUSE_SECONDS))

    def _read_once(self, found: LogPod) -> None:
        """Lines after the last one. The server resumes at whole seconds, so earlier lines are skipped."""
        query, last = {"follow": "true", "timestamps": "true"}, self._newest.get(found.uid)
        if last is not None:
            query["sinceTime"] = last.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        elif self._selection.tail is not None:
            query["tailLines"] = str(self._selection.tail)
        with self._cluster.log(found.name, **query) as lines:
            for line in (parse(each, found.node) for each in lines):
                if last is None or line.time > last:
                    self._lines.put(line)
                    self._newest[found.uid] = line.time

    def _has_ended(self, found: LogPod) -> bool:
        pod = self._cluster.find("v1", "pods", found.name)
        return pod is None or pod["metadata"]["uid"] != found.uid or log_pod(pod).has_ended
