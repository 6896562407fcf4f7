"""How a job stops: the verdict first, the end when no pod is active, whatever happens in between."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from builders import Json
from finetune_api.resource.status import Phase
from finetune_api.runtime.exits import Exit
from finetune_plan.decide import POLL_SECONDS, SILENT_SECONDS
from finetune_plan.model import ObservedPod, ObservedRun, Plan
from finetune_plan.stopping import RELEASE_SECONDS
from plan.situations import NOW, RUN1, accepted, condition, created, decided, deleted, ended, pod, seen, written

CANCEL: Json = {"cancel": True}
SUSPEND: Json = {"suspend": True}
DEADLINE: Json = {"lifecycle.activeDeadlineSeconds": 60}
LEAVING = (ObservedRun("sample-1", 1, deleting=True),)
BOTH = (pod(0), pod(1))


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def going(rank: int, phase: str = "Running") -> ObservedPod:
    """A pod that was deleted and has five minutes."""
    return pod(rank, phase, termination_deadline=ago(-300))


def said(answer: Plan, kind: str = "PodsReady") -> str:
    return next(c.message for c in answer.status.conditions or () if c.type == kind)


def failing(age: float = 0.0) -> Json:
    """The status of a job whose data was refused so many seconds ago, and whose other pod runs."""
    status = written(decided(seen(status=accepted(), runs=RUN1, pods=(ended(0, Exit.DATA_REFUSED), pod(1)))))
    for each in status["conditions"]:
        each["lastTransitionTime"] = ago(age)
    return status


def stopped(changes: Json, **more: Any) -> Json:
    """The status after a job was stopped while its pods ran."""
    return written(decided(seen(changes, status=accepted(**more), runs=RUN1, pods=BOTH)))


class Stop(NamedTuple):
    """What a job says and what is observed of it; what is deleted, the phase, and words of PodsReady."""

    changes: Json
    status: Json
    runs: tuple[ObservedRun, ...]
    pods: tuple[ObservedPod, ...]
    deleted: list[str]
    phase: Phase
    words: str


NOW_STOPS = "These have not ended yet: 2 pods with 8 GPUs (sample-1-0, sample-1-1). They are being deleted."
GRACE = f"These have not ended yet: 2 pods with 8 GPUs (sample-1-0, sample-1-1). They have until {ago(-300)} to save"
STOPS: dict[str, Stop] = {
    "a cancelled job stops at once": Stop(
        CANCEL, accepted(), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "so does a suspended one": Stop(
        SUSPEND, accepted(), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "and one whose time is over": Stop(
        DEADLINE, accepted(active={"seconds": 100}), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "a run is deleted again if the operator died before it did so": Stop(
        CANCEL, stopped(CANCEL), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "pods that wait for a node go too": Stop(
        CANCEL, stopped(CANCEL), RUN1, (pod(0, "Pending"), pod(1, "Pending")), ["sample-1"], Phase.STOPPING,
        NOW_STOPS),
    "pods have their grace, and the message says until when": Stop(
        CANCEL, stopped(CANCEL), LEAVING, (going(0), going(1)), [], Phase.STOPPING, GRACE),
    "the run itself has to go": Stop(
        CANCEL, stopped(CANCEL), LEAVING, (ended(0, Exit.STOPPED),), [], Phase.STOPPING,
        "These have not ended yet: run sample-1."),
    "a pod on a node that does not answer is named": Stop(
        CANCEL, stopped(CANCEL), LEAVING, (pod(0, termination_deadline=ago(60)),), [], Phase.STOPPING,
        "Pod sample-1-0 is past its termination grace period"),
    "a cancelled job is Cancelled when nothing is left": Stop(
        CANCEL, stopped(CANCEL), (), (), [], Phase.CANCELLED, "No pods are needed."),
    "a job is Suspended when nothing is left": Stop(
        SUSPEND, stopped(SUSPEND), (), (), [], Phase.SUSPENDED, "No pods are needed."),
    "cancelling is not undone by taking it back": Stop(
        {}, stopped(CANCEL), (), (), [], Phase.CANCELLED, "No pods are needed."),
    "nor by a success that comes after it": Stop(
        {}, stopped(CANCEL), LEAVING, (ended(0, Exit.OK), going(1)), [], Phase.STOPPING,
        "1 pod with 4 GPUs (sample-1-1)"),
    "nor is a deadline, by a longer one": Stop(
        {}, stopped(DEADLINE, active={"seconds": 100}), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "a job that is cancelled while it stops for a suspension is cancelled": Stop(
        {**SUSPEND, **CANCEL}, stopped(SUSPEND), LEAVING, (going(0), going(1)), [], Phase.STOPPING, GRACE),
    "and ends so": Stop(
        {**SUSPEND, **CANCEL}, stopped(SUSPEND), (), (), [], Phase.CANCELLED, "No pods are needed."),
    "one that is suspended while it is being cancelled is cancelled": Stop(
        {**SUSPEND, **CANCEL}, stopped(CANCEL), (), (), [], Phase.CANCELLED, "No pods are needed."),
    "a job that is resumed while its run is being deleted waits for that": Stop(
        {}, stopped(SUSPEND), LEAVING, (going(0), going(1)), [], Phase.STOPPING, "2 pods with 8 GPUs"),
    "one that is resumed before its run was deleted goes on": Stop(
        {}, stopped(SUSPEND), RUN1, BOTH, [], Phase.STARTING, "2 of 2 pods are running."),
    "after a failure the run is kept for its logs, and the backend ends the pods": Stop(
        {}, failing(), RUN1, (ended(0, Exit.DATA_REFUSED), pod(1)), [], Phase.STOPPING,
        f"1 pod with 4 GPUs (sample-1-1). They are deleted at {ago(-RELEASE_SECONDS)} unless they exit before."),
    "a success that comes later changes nothing": Stop(
        {}, failing(), RUN1, (ended(0, Exit.OK), pod(1)), [], Phase.STOPPING, "1 pod with 4 GPUs"),
    "nor does cancelling": Stop(
        CANCEL, failing(), RUN1, (ended(0, Exit.DATA_REFUSED), ended(1, Exit.PEER_LOST)), [], Phase.FAILED,
        "No pods are needed."),
    "nor suspending": Stop(
        SUSPEND, failing(), RUN1, (ended(0, Exit.DATA_REFUSED), pod(1)), [], Phase.STOPPING, "1 pod with 4 GPUs"),
    "pods that outlive the failure are deleted": Stop(
        {}, failing(RELEASE_SECONDS), RUN1, (ended(0, Exit.DATA_REFUSED), pod(1)), ["sample-1"], Phase.STOPPING, ""),
    "those that still wait for a node too": Stop(
        {}, failing(RELEASE_SECONDS), RUN1, (ended(0, Exit.DATA_REFUSED), pod(1, "Pending")), ["sample-1"],
        Phase.STOPPING, "1 pod with 4 GPUs (sample-1-1). They are being deleted."),
    "pods go at once where none has ended: the backend would make others, and there is no log": Stop(
        {}, failing(), RUN1, BOTH, ["sample-1"], Phase.STOPPING, NOW_STOPS),
    "pods that have not begun are not waited for: they have nothing to save and no log": Stop(
        {}, failing(), RUN1, (pod(0, "Pending"), pod(1, "Pending")), ["sample-1"], Phase.STOPPING,
        "They are being deleted."),
    "those that the backend has deleted have their grace, and the run keeps its logs": Stop(
        {}, failing(RELEASE_SECONDS), RUN1, (ended(0, Exit.DATA_REFUSED), going(1)), [], Phase.STOPPING,
        "have until"),
    "a job that wants no GPU holds none": Stop(
        {**CANCEL, "compute.gpu_type": "cpu"}, accepted(), RUN1, BOTH, ["sample-1"], Phase.STOPPING,
        "These have not ended yet: 2 pods (sample-1-0"),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_a_job_stops(case: str) -> None:
    stop = STOPS[case]
    answer = decided(seen(stop.changes, status=stop.status, runs=stop.runs, pods=stop.pods))
    assert (deleted(answer), created(answer), answer.status.phase) == (stop.deleted, [], stop.phase)
    assert stop.words in said(answer)
    over = stop.phase in (Phase.CANCELLED, Phase.FAILED)
    assert bool(answer.status.completionTime) is over
    assert (answer.requeue_after == POLL_SECONDS) is (stop.phase is Phase.STOPPING)
    if over:
        assert condition(answer, "Failed") == condition(answer, "FailureTarget")


def test_the_verdict_that_was_recorded_is_the_one_that_the_job_ends_with() -> None:
    status = failing()
    answer = decided(seen(CANCEL, status=status, runs=RUN1, pods=(ended(0, Exit.CRASHED), ended(1, Exit.OK))))
    assert condition(answer, "Failed") == ("True", "DataRefused")
    assert said(answer, "Failed") == said(answer, "FailureTarget")
    assert said(answer, "Failed").startswith("Pod sample-1-0: why. Correct the lines")


def test_a_failure_is_counted_once_however_often_its_run_is_seen() -> None:
    pods = (ended(0, Exit.CRASHED), pod(1))
    failed = decided(seen(status=accepted(), runs=RUN1, pods=pods))
    paused = decided(seen(SUSPEND, status=written(failed), runs=RUN1, pods=pods))
    resumed = decided(seen(status=written(paused), runs=RUN1, pods=pods))
    assert [answer.status.restarts for answer in (failed, paused, resumed)] == [1, 1, 1]
    assert deleted(resumed) == ["sample-1"]


def test_a_run_that_is_over_and_left_no_pod_is_followed_by_another_for_free() -> None:
    over = (replace(RUN1[0], over=True),)
    for pods in ((), (ended(1, Exit.OK),)):
        answer = decided(seen(status=accepted(), runs=over, pods=pods))
        assert (deleted(answer), answer.status.restarts) == (["sample-1"], 0)
        assert said(answer, "Training").startswith("Run sample-1 is over, and its pods are gone without a report.")
    assert not deleted(decided(seen(status=accepted(), runs=over, pods=BOTH))), "the backend ends them"


def test_a_lost_peer_costs_nothing_if_the_peer_was_deleted() -> None:
    status = written(decided(seen({"lifecycle.maxRestarts": 0}, status=accepted(), runs=RUN1, pods=BOTH)))
    lost = seen({"lifecycle.maxRestarts": 0}, status=status, runs=RUN1, pods=(ended(1, Exit.PEER_LOST),))
    assert (deleted(decided(lost)), decided(lost).status.restarts) == (["sample-1"], 0)


def test_many_pods_are_not_all_named() -> None:
    answer = decided(seen({"compute.nodes": 8, "compute.gpu_count": 64, **CANCEL}, status=accepted(), runs=RUN1,
                          pods=tuple(pod(rank) for rank in range(8))))  # fmt: skip
    assert "8 pods with 32 GPUs (sample-1-0, sample-1-1, sample-1-2, sample-1-3 and 4 more)." in said(answer)


@pytest.mark.parametrize(("over", "gone"), [(True, []), (False, ["sample-1"])])
def test_a_run_that_may_still_make_pods_does_not_outlive_its_verdict(over: bool, gone: list[str]) -> None:
    status = stopped(CANCEL) | {"phase": "Cancelled", "completionTime": ago(RELEASE_SECONDS)}
    assert deleted(decided(seen(CANCEL, status=status, runs=(replace(RUN1[0], over=over),)))) == gone


def test_pods_that_wait_for_a_node_do_not_outlive_a_success() -> None:
    status = accepted(phase="Succeeded", completionTime=ago(RELEASE_SECONDS))
    assert deleted(decided(seen(status=status, runs=RUN1, pods=(ended(0, Exit.OK), pod(1, "Pending"))))) == [
        "sample-1"
    ]


@pytest.mark.parametrize(("age", "reason", "due"), [(59, "Waiting", 1.0), (60, "BackendSilent", None)])
def test_a_controller_that_takes_up_no_run_is_named_within_a_minute(age: int, reason: str, due: float | None) -> None:
    run = ObservedRun("sample-1", 1, created=ago(age), reconciled=False)
    answer = decided(seen(status=accepted(), runs=(run,)))
    assert (condition(answer, "PodsReady"), answer.requeue_after) == (("False", reason), due)
    assert ("The Training Operator has not reconciled run sample-1 since" in said(answer)) is (due is None)
    assert SILENT_SECONDS == 60
    taken_up = decided(seen(status=written(answer), runs=(replace(run, reconciled=True),)))
    assert condition(taken_up, "PodsReady") == ("False", "Waiting")


def test_the_first_run_waits_for_the_pods_of_a_deleted_job_of_the_same_name() -> None:
    waiting = decided(seen(previous=("run sample-2", "pod sample-2-worker-0")))
    assert (created(waiting), waiting.status.phase, waiting.requeue_after) == ([], Phase.QUEUED, POLL_SECONDS)
    assert condition(waiting, "PodsReady") == ("False", "PreviousJob")
    assert "has left run sample-2, pod sample-2-worker-0. The next run waits" in said(waiting)
    assert created(decided(seen(status=written(waiting)))) == ["sample-1"]


@pytest.mark.parametrize("refusal", ["", "exceeded quota: gpus"], ids=["a run that was not seen", "a refused run"])
def test_a_claimed_run_that_waits_for_pods_of_that_name_keeps_its_number(refusal: str) -> None:
    status = accepted()
    if refusal:
        status = written(decided(seen(status=status, refusal=refusal)))
    waiting = decided(seen(status=status, previous=("pod sample-1-worker-0",)))
    assert (created(waiting), condition(waiting, "PodsReady")) == ([], ("False", "PreviousJob"))
    assert created(decided(seen(status=written(waiting), previous=("pod sample-1-worker-0",)))) == []
    assert created(decided(seen(status=written(waiting)))) == ["sample-1"]


def test_the_gang_is_known_by_its_uids_from_the_moment_when_all_ran() -> None:
    partly = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1, "Pending"))))
    assert partly.status.podsDigest is None
    whole = decided(seen(status=written(partly), runs=RUN1, pods=BOTH))
    assert whole.status.podsDigest
    done = decided(seen(status=written(whole), runs=RUN1, pods=(pod(0), ended(1, Exit.OK))))
    assert (deleted(done), done.status.podsDigest) == ([], whole.status.podsDigest)
    stranger = replace(pod(0), uid="other")
    lost = decided(seen(status=written(done), runs=RUN1, pods=(stranger, ended(1, Exit.OK))))
    assert (deleted(lost), lost.status.podsDigest) == (["sample-1"], None)
    assert said(lost, "Training").startswith("Running pods of the run were deleted or replaced. The next run starts")
