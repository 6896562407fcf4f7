"""Lives of a job as its owner and its nodes play them; the operator and the Training Operator do the rest.

A life that deletes its job returns the last status.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from builders import Json
from finetune_api.runtime.exits import Exit
from operating.team import Team
from testbed.api import ApiError
from testbed.kwok import Node
from testbed.pods import bind_pod, remove_pod
from testbed.watch import wait_for_all

GRACE_S = 3.0
"""Seconds that deleted pods take to end where they leave with grace: longer than a pass, shorter than a poll."""

Life = Callable[[Team], Json | None]


def reconsidered(team: Team) -> None:
    """Suspended as soon as it has pods, resumed at once, restarted after a worker's crash, successful.

    Its result is noted on the claim that it lies on.
    """
    team.claim("models")
    team.submit()
    team.until_run("sample-1")
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    team.edit({"suspend": False})
    team.start("sample-2")
    team.end("sample-2-worker-1", Exit.CRASHED, "boom")
    team.start("sample-3")
    team.end("sample-3-worker-0")


def failed(team: Team) -> None:
    """Suspended while it runs, resumed, ended by a failure that would repeat itself."""
    team.submit()
    team.start("sample-1")
    team.edit({"suspend": True})
    team.until_phase("Suspended")
    team.until_gone(team.runs)
    team.edit({"suspend": False})
    team.start("sample-2")
    team.end("sample-2-worker-1", Exit.DATA_REFUSED, "Line 3 is no JSON.")


def deleted(team: Team) -> None:
    """Deleted while it runs, by what follows every life here."""
    team.submit()
    team.start("sample-1")


def cancelled(team: Team) -> None:
    """Cancelled while it runs; its pods take their time to leave."""
    _start_bound(team)
    team.edit({"cancel": True})
    _leave(team)


def late(team: Team) -> None:
    """Out of time while it runs; its pods take their time to leave."""
    _start_bound(team)
    time.sleep(1.5)  # over when it is set: a second that is not yet over would take a write of its own, or none
    team.edit({"lifecycle": {"activeDeadlineSeconds": 1}})
    _leave(team)


def tidied(team: Team) -> None:
    """Successful, and its run is deleted when its TTL is over."""
    team.submit({"lifecycle.ttlSecondsAfterFinished": 1})
    team.start("sample-1")
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    team.until_gone(team.runs)


def deleted_at_success(team: Team) -> Json:
    """Deleted the moment it is successful, while a pod goes on; its result is noted on the claim that it lies on."""
    team.claim("models")
    team.submit()
    team.start("sample-1")
    team.end("sample-1-worker-0")
    status = team.until(lambda status: "completionTime" in status)
    team.api.delete(f"{team.jobs}/sample")
    return status


class Bound(Team):
    """Its pods are bound to a node before they run, so a deletion gives them their grace."""

    def start(self, run: str = "sample-1", name: str = "sample", pods: int = 2) -> None:
        for pod in self.until_run(run, pods):
            bind_pod(self.api, self.namespace, pod["metadata"]["name"], self.namespace)
        super().start(run, name, pods)


def _with_grace(life: Life) -> Life:
    return lambda team: life(Bound(team.api, team.namespace, team.patience_s))


@contextmanager
def node(team: Team, life: str) -> Iterator[None]:
    """The node that the pods of a life with grace are bound to; its kubelet takes some seconds over each deletion."""
    if life not in WITH_GRACE:
        yield
        return
    team.api.create(Node(team.namespace).manifest())
    stopped = threading.Event()
    kubelet = threading.Thread(target=_end_deleted_pods, args=(team, stopped), daemon=True)
    kubelet.start()
    try:
        yield
    finally:
        stopped.set()
        kubelet.join()
        team.api.delete(f"/api/v1/nodes/{team.namespace}")


def _end_deleted_pods(team: Team, stopped: threading.Event) -> None:
    due: dict[str, float] = {}
    while not stopped.wait(0.2):
        for pod in team.api.items(team.pods):
            metadata = pod["metadata"]
            if "deletionTimestamp" not in metadata:
                continue
            if due.setdefault(metadata["uid"], time.monotonic() + GRACE_S) < time.monotonic():
                with suppress(ApiError):  # it was not bound, and is gone
                    remove_pod(team.api, team.namespace, metadata["name"])


def _start_bound(team: Team) -> None:
    """On a node, whose kubelet is the test."""
    team.api.create(Node(team.namespace).manifest())
    team.submit()
    for pod in team.until_run("sample-1"):
        bind_pod(team.api, team.namespace, pod["metadata"]["name"], team.namespace)
    team.until(lambda status: "active" in status)  # so that it is a write of its own
    team.start("sample-1")


def _leave(team: Team) -> None:
    """The pods were deleted, the job says that it stops, and the pods end."""
    deleted = wait_for_all(
        team.api, team.pods, lambda pods: all("deletionTimestamp" in p["metadata"] for p in pods), timeout_s=60
    )
    team.until_phase("Stopping")
    for pod in deleted:
        remove_pod(team.api, team.namespace, pod["metadata"]["name"])


WITH_GRACE: Mapping[str, Life] = {
    f"{f.__name__}_with_grace": _with_grace(f) for f in (reconsidered, failed, deleted, deleted_at_success)
}
LIVES: Mapping[str, Life] = {
    **{f.__name__: f for f in (reconsidered, failed, deleted, deleted_at_success, cancelled, late, tidied)},
    **WITH_GRACE,
}  # fmt: skip
