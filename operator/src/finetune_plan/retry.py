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

from .model import ObservedPod

ADMISSION_ERROR = "UnexpectedAdmissionError"
"""Why a kubelet rejects a pod whose devices it cannot allocate: it does so again until somebody repairs the node."""


@dataclass(frozen=True)
class Failure:
    exit_code: int
    message: str
    free: bool
    """Not the job's fault: another run costs nothing."""
    node: str = ""
    """That is to blame; empty if none is."""


def root_cause(pods: tuple[ObservedPod, ...]) -> Failure | None:
    """The root cause of a failed run, or None while none of its pods has failed.

    A pod of phase Failed always has one: its kubelet may have rejected it, so that no container has a status.
    """
    ended = [p for p in pods if p.exit_code not in (None, Exit.OK) and not _was_deleted(p)]
    first = min(ended, key=_precedence, default=None)
    lost = next((p for p in pods if p.disruption), None)
    if first and first.exit_code != Exit.PEER_LOST and not (lost and _was_signalled(first)):
        return _from_pod(first)
    if lost:
        blamed = lost.node if lost.disruption.startswith(ADMISSION_ERROR) else ""
        return Failure(Exit.PEER_LOST, f"The cluster removed pod {lost.name}: {lost.disruption}.", True, blamed)
    if deleted := next((p for p in pods if _was_deleted(p)), None):
        return Failure(Exit.PEER_LOST, f"Pod {deleted.name} was deleted.", free=True)
    return _failed_otherwise(pods) or (_from_pod(first) if first else _exited_without_report(pods))


def should_retry(cause: Failure, restarts: int, allowed: int) -> bool:
    """Whether another run follows."""
    retry = exits.meaning(cause.exit_code).retry
    if cause.free or retry is Retry.FREE:
        return True
    return retry is Retry.BUDGET and restarts < allowed


def saved_step(pods: tuple[ObservedPod, ...]) -> int:
    """Step of the checkpoint that a stopped run reports; 0 if none was stopped. Its log may be gone unread."""
    return max((p.report.step for p in pods if p.report and p.report.exit_code == Exit.STOPPED), default=0)


def _from_pod(pod: ObservedPod) -> Failure:
    code = Exit.CRASHED if pod.exit_code is None else pod.exit_code
    sentence = pod.report.message if pod.report else exits.meaning(code).sentence
    blamed = pod.node if code == Exit.HARDWARE_FAILED else ""
    return Failure(code, f"Pod {pod.name}: {sentence}", exits.meaning(code).retry is Retry.FREE, blamed)


def _failed_otherwise(pods: tuple[ObservedPod, ...]) -> Failure | None:
    """A pod has failed whose trainer never started, or ended with 0."""
    pod = next((p for p in pods if p.phase == "Failed" and not p.exit_code), None)
    if pod is None:
        return None
    return Failure(Exit.CRASHED, f"Pod {pod.name}: {pod.failure or 'it failed and does not say why'}.", free=False)


def _exited_without_report(pods: tuple[ObservedPod, ...]) -> Failure | None:
    """An exit code of 0 is not a result: node 0 has to report one."""
    pod = next((p for p in pods if p.node_rank == 0 and p.exit_code == Exit.OK and not p.report), None)
    message = "exited with code 0 and without a final report: pods.image is not a trainer image."
    return Failure(Exit.CRASHED, f"Pod {pod.name} {message}", free=False) if pod else None


def _precedence(pod: ObservedPod) -> tuple[bool, float]:
    assert pod.exit_code is not None, "only pods that have ended are compared"
    return precedence(pod.exit_code, pod.report)


def _was_deleted(pod: ObservedPod) -> bool:
    """Whether a deletion ended it: in its grace, after it, or by force, of which pods of a Job say nothing else."""
    silent = pod.phase == "Failed" and not (pod.exit_code or pod.failure)
    return bool(pod.termination_deadline) and (silent or _was_signalled(pod))


def _was_signalled(pod: ObservedPod) -> bool:
    return pod.exit_code is not None and (pod.exit_code > 128 or pod.exit_code == Exit.STOPPED)
