"""What the plan does about a job, one situation a row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from builders import Json, resource

from finetune_api.exits import Exit
from finetune_api.report import Cause, FinalReport, ProgressRecord
from finetune_api.status import Phase
from finetune_operator.plan.decide import plan
from finetune_operator.plan.model import CreateRun, DeleteRun, Observed, Plan, PodSeen, RunSeen
from finetune_operator.plan.settings import PlanSettings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
RUN1 = (RunSeen("sample-1", 1),)


def seen(changes: Json | None = None, status: Json | None = None, **parts: Any) -> Observed:
    body = resource({"compute.nodes": 2, **(changes or {})})
    body["metadata"] |= {"uid": "u-1", "namespace": "team", "generation": 3}
    return Observed(body | ({"status": status} if status else {}), **parts)


def decided(observed: Observed) -> Plan:
    return plan(observed, PlanSettings(), NOW)


def created(answer: Plan) -> list[str]:
    return [a.manifest["metadata"]["name"] for a in answer.actions if isinstance(a, CreateRun)]


def deleted(answer: Plan) -> list[str]:
    return [a.name for a in answer.actions if isinstance(a, DeleteRun)]


def condition(answer: Plan, kind: str) -> tuple[str, str]:
    return next((c.status.value, c.reason) for c in answer.status.conditions or () if c.type == kind)


def accepted(**more: Any) -> Json:
    """The status as written after the first run was created."""
    status = decided(seen()).status.model_dump(mode="json", exclude_none=True)
    return status | more


def pod(rank: int, phase: str = "Running", **more: Any) -> PodSeen:
    return PodSeen(f"sample-1-{rank}", f"uid-{rank}", 1, rank, phase, **more)


def ended(rank: int, code: Exit, *, at: float = 10.0, message: str = "why", cause: bool = True) -> PodSeen:
    report = FinalReport(time=at, exit_code=code, reason="x", message=message, step=7, result="/out/result",
                         digest="sha256:1", metrics={"val.loss": 1.5},
                         cause=Cause(rank=rank, node=rank, time=at, error=message) if cause and code else None)  # fmt: skip
    return pod(rank, "Succeeded" if code == Exit.OK else "Failed", exit_code=int(code), report=report)


def test_a_new_job_gets_its_first_run_and_says_what_was_decided() -> None:
    answer = decided(seen())
    assert created(answer) == ["sample-1"]
    assert answer.status.phase is Phase.STARTING
    assert answer.status.run == 1
    assert answer.status.startTime == "2026-01-01T12:00:00Z"
    assert condition(answer, "Accepted")[0] == "True"
    [action] = answer.actions
    assert isinstance(action, CreateRun)
    assert action.manifest["metadata"]["namespace"] == "team"
    assert action.manifest["metadata"]["ownerReferences"][0]["uid"] == "u-1"


def test_a_job_that_makes_no_sense_is_refused_with_every_reason() -> None:
    answer = decided(seen({"compute.gpu_type": None, "hyperparameters.learning_rat": 1}))
    assert answer.actions == ()
    assert answer.status.phase is Phase.FAILED
    [message] = [c.message for c in answer.status.conditions or () if c.type == "Accepted"]
    assert "missing_gpu_type" in message
    assert "spec.hyperparameters.learning_rate" in message


def test_a_refused_job_that_was_mended_starts() -> None:
    refused = decided(seen({"compute.gpu_type": None})).status.model_dump(mode="json", exclude_none=True)
    answer = decided(seen(status=refused))
    assert created(answer) == ["sample-1"]
    assert condition(answer, "Accepted")[0] == "True"


def test_a_running_job_needs_nothing_and_counts_its_own_pods() -> None:
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1, "Pending"))))
    assert answer.actions == ()
    assert condition(answer, "PodsReady") == ("False", "Waiting")


def test_progress_reaches_the_status() -> None:
    record = ProgressRecord(time=0, step=5, total_steps=20, epoch=0.25, loss=float("nan"), learning_rate=1e-4,
                            grad_norm=1.0, tokens_per_second=100, eta_seconds=12.4)  # fmt: skip
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1)), records=(record,)))
    progress = answer.status.progress
    assert progress is not None
    assert (progress.step, progress.percent, progress.etaSeconds, progress.loss) == (5, 25, 12, None)
    assert answer.status.phase is Phase.TRAINING


def test_success_is_the_report_of_node_0_and_workers_are_released() -> None:
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK), pod(1))))
    assert deleted(answer) == ["sample-1"]
    assert answer.status.phase is Phase.SUCCEEDED
    assert answer.status.result is not None
    assert answer.status.result.uri == "/out/result"
    assert condition(answer, "Ready") == ("True", "Succeeded")


FINISHED = {"phase": "Succeeded", "completionTime": "2026-01-01T11:00:00Z", "run": 1}


@pytest.mark.parametrize("changes", [{}, {"suspend": True}, {"cancel": True}, {"compute.gpu_type": None}])
def test_a_finished_job_never_creates_anything_again(changes: Json) -> None:
    answer = decided(seen(changes, status=FINISHED))
    assert answer.actions == ()
    assert answer.status.phase is Phase.SUCCEEDED


def test_children_of_a_finished_job_go_when_their_time_is_over() -> None:
    young = decided(seen({"lifecycle.ttlSecondsAfterFinished": 7200}, status=FINISHED, runs=RUN1))
    old = decided(seen({"lifecycle.ttlSecondsAfterFinished": 60}, status=FINISHED, runs=RUN1))
    assert (deleted(young), young.requeue_after) == ([], 3600)
    assert deleted(old) == ["sample-1"]


def test_cancelling_ends_the_job_for_good() -> None:
    answer = decided(seen({"cancel": True}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert deleted(answer) == ["sample-1"]
    assert answer.status.phase is Phase.CANCELLED
    assert answer.status.completionTime


def test_suspending_gives_the_gpus_back_and_resuming_starts_the_next_run() -> None:
    suspended = decided(seen({"suspend": True}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert deleted(suspended) == ["sample-1"]
    assert suspended.status.phase is Phase.SUSPENDED
    resumed = decided(seen(status=suspended.status.model_dump(mode="json", exclude_none=True)))
    assert created(resumed) == ["sample-2"]
    assert condition(resumed, "Suspended") == ("False", "Resumed")


def test_the_next_run_waits_until_the_pods_of_the_last_one_are_gone() -> None:
    answer = decided(seen(status=accepted(), runs=(), pods=(pod(0),)))
    assert answer.actions == ()
    assert answer.requeue_after


def test_without_a_training_operator_the_job_waits_and_says_so() -> None:
    answer = decided(seen(backend=False))
    assert answer.actions == ()
    assert condition(answer, "PodsReady") == ("False", "BackendMissing")
    assert answer.requeue_after


FAILURES: dict[str, tuple[tuple[PodSeen, ...], int, Json, bool, int]] = {
    # pods, restarts so far, spec, another run?, restarts afterwards
    "a crash costs one restart": ((ended(0, Exit.CRASHED), pod(1)), 0, {}, True, 1),
    "the last restart is the last": ((ended(0, Exit.CRASHED), pod(1)), 3, {}, False, 3),
    "maxRestarts 0 allows none": (
        (ended(0, Exit.CRASHED), pod(1)), 0, {"lifecycle.maxRestarts": 0}, False, 0),
    "bad data fails the same way again": ((ended(0, Exit.DATA_REFUSED),), 0, {}, False, 0),
    "a checkpoint on request costs nothing": ((ended(0, Exit.STOPPED), ended(1, Exit.STOPPED)), 3, {}, True, 3),
    "an evicted pod costs nothing": (
        (ended(1, Exit.PEER_LOST), replace(pod(0, "Failed", exit_code=137), lost="Evicted")), 3, {}, True, 3),
    "the peer that was lost first is the cause": (
        (ended(0, Exit.PEER_LOST, at=5), ended(1, Exit.NON_FINITE, at=9)), 0, {}, False, 0),
    "out of memory ends the job": ((pod(0), ended(1, Exit.OUT_OF_MEMORY)), 0, {}, False, 0),
    "a killed pod without a report costs one": ((pod(0), pod(1, "Failed", exit_code=137)), 0, {}, True, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_pod_ends_the_run_of_the_gang(case: str) -> None:
    pods, before, changes, again, after = FAILURES[case]
    answer = decided(seen(changes, status=accepted(restarts=before), runs=RUN1, pods=pods))
    assert deleted(answer) == ["sample-1"]
    assert (answer.status.restarts or 0) == after
    assert (answer.status.phase is Phase.STARTING) == again
    assert (answer.status.completionTime is None) == again


def test_the_deadline_is_ours() -> None:
    start = (NOW - timedelta(seconds=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = decided(seen({"lifecycle.activeDeadlineSeconds": 60}, status=accepted(startTime=start), runs=RUN1,
                          pods=(pod(0), pod(1))))  # fmt: skip
    assert deleted(answer) == ["sample-1"]
    assert condition(answer, "Failed") == ("True", "DeadlineExceeded")


def test_an_operator_upgrade_that_refuses_a_running_job_leaves_it_alone() -> None:
    answer = decided(seen({"compute.gpu_type": "X9000"}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert answer.actions == ()
    assert answer.status.phase is not Phase.FAILED
