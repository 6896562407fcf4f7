"""After a failed run: another one, or the end.

Preemption, eviction and suspension cost nothing; a failure costs one of lifecycle.maxRestarts; a failure
that would repeat itself ends the job at once. The root cause of a gang is the earliest failure that is not
the loss of a peer.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.runtime import exits
from finetune_api.runtime.exits import Exit, Retry
from finetune_api.runtime.root_cause import precedence

from .model import PodSeen

MAX_RESTARTS = 3
"""Where lifecycle.maxRestarts is absent."""


@dataclass(frozen=True)
class Failure:
    exit_code: int
    message: str
    free: bool
    """Not the job's fault: another run costs nothing."""


def failure(pods: tuple[PodSeen, ...]) -> Failure | None:
    """The root cause of a failed run, or None while none of its pods has failed."""
    lost = next((p for p in pods if p.lost), None)
    ended = [p for p in pods if p.exit_code not in (None, Exit.OK)]
    if not ended and lost is None:
        return _mute(pods)
    first = min(ended, key=_precedence, default=None)
    if first and not (lost and (first.exit_code == Exit.PEER_LOST or _signalled(first))):
        return _of(first)
    assert lost is not None, "something has ended or is lost"
    return Failure(Exit.PEER_LOST, f"Pod {lost.name} was taken away: {lost.lost}.", free=True)


def again(cause: Failure, restarts: int, allowed: int | None) -> bool:
    """Whether another run follows."""
    retry = exits.meaning(cause.exit_code).retry
    if cause.free or retry is Retry.FREE:
        return True
    return retry is Retry.BUDGET and restarts < (MAX_RESTARTS if allowed is None else allowed)


def _of(pod: PodSeen) -> Failure:
    code = Exit.CRASHED if pod.exit_code is None else pod.exit_code
    sentence = pod.report.message if pod.report else exits.meaning(code).sentence
    return Failure(code, f"Pod {pod.name}: {sentence}", free=exits.meaning(code).retry is Retry.FREE)


def _mute(pods: tuple[PodSeen, ...]) -> Failure | None:
    """An exit code of 0 is not a result: node 0 has to report one."""
    pod = next((p for p in pods if p.node_rank == 0 and p.exit_code == Exit.OK and not p.report), None)
    message = "ended with exit code 0 and without a report, so it was not our trainer that ended."
    return Failure(Exit.CRASHED, f"Pod {pod.name} {message}", free=False) if pod else None


def _precedence(pod: PodSeen) -> tuple[bool, float]:
    assert pod.exit_code is not None, "only pods that have ended are compared"
    return precedence(pod.exit_code, pod.report)


def _signalled(pod: PodSeen) -> bool:
    return pod.exit_code is not None and (pod.exit_code > 128 or pod.exit_code == Exit.STOPPED)
