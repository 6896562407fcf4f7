"""Lives of a job as its owner and its nodes play them; the operator and the Training Operator do the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finetune_api.runtime.exits import Exit
from operating.team import Team
from testbed.kwok import Node
from testbed.pods import bind_pod, remove_pod
from testbed.watch import wait_for_all


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
    team.edit({"lifecycle": {"activeDeadlineSeconds": 1}})
    _leave(team)


def tidied(team: Team) -> None:
    """Successful, and its run is deleted when its TTL is over."""
    team.submit({"lifecycle.ttlSecondsAfterFinished": 1})
    team.start("sample-1")
    team.end("sample-1-worker-0")
    team.until_phase("Succeeded")
    team.until_gone(team.runs)


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


LIVES: Mapping[str, Callable[[Team], None]] = {
    f.__name__: f for f in (reconsidered, failed, deleted, cancelled, late, tidied)
}
SAMPLED = ("cancelled", "late", "tidied")
"""Lives that are killed at every write, and disturbed otherwise at one."""
