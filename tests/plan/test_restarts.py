"""When runs follow each other, and which time a deadline counts: whole lives of a job on a fake clock.

Between two passes nothing is kept but the status as JSON, so every pass is also one after a restart of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders import Json, resource
from finetune_api.resource.status import Phase
from finetune_api.runtime.exits import Exit, meaning
from finetune_api.runtime.report import FinalReport, ResumeRecord
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import POLL_SECONDS, plan
from finetune_plan.model import CreateRun, Observed, ObservedPod, ObservedRun, Plan
from finetune_plan.settings import PlanSettings

BIRTH = datetime(2026, 1, 1, 12, tzinfo=UTC)
PREEMPTED = "PreemptionByScheduler"


def text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Life:
    """A job of one node. Its runs are created and removed as the plans say; the test plays its pod."""

    changes: Json = field(default_factory=dict)
    settings: PlanSettings = field(default_factory=PlanSettings)
    uid: str = "u-1"
    now: datetime = BIRTH
    status: Json = field(default_factory=dict)
    run: int = 0
    pods: tuple[ObservedPod, ...] = ()

    def __post_init__(self) -> None:
        self.reconcile()

    def reconcile(self, *records: Any) -> Plan:
        body = resource({"compute.nodes": 1, **self.changes})
        body["metadata"] |= {"uid": self.uid, "namespace": "team", "generation": 1}
        runs = (ObservedRun(f"sample-{self.run}", self.run),) if self.run else ()
        answer = plan(Observed(body | {"status": self.status}, runs, self.pods, records), self.settings, self.now,
                      BACKEND)  # fmt: skip
        self.status = answer.status.model_dump(mode="json", exclude_none=True)
        for action in answer.actions:
            created = isinstance(action, CreateRun)
            self.run, self.pods = (self.status["run"] if created else 0), ()
        return answer

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def start(self, *records: Any) -> None:
        """The pod of the run is bound to a node, and runs."""
        pod = ObservedPod(f"sample-{self.run}-worker-0", f"p-{self.run}", self.run, 0, "Running")
        self.pods = (replace(pod, bound_since=text(self.now)),)
        self.reconcile(*records)

    def end(self, code: int = Exit.STORAGE_FAILED, step: int = 0, disruption: str = "") -> Plan:
        """The pod ends."""
        report = FinalReport(time=0, exit_code=code, reason="", message="why", step=step)
        ended = replace(self.pods[0], phase="Failed", exit_code=int(code), report=report, disruption=disruption,
                        bound_since="", ended_at=text(self.now))  # fmt: skip
        self.pods = (ended,)
        return self.reconcile()

    def until_next_run(self) -> float:
        """Let the plan's own requests for another pass play; seconds until the next run is created."""
        began = self.now
        while not self.run:
            answer = self.reconcile()
            if not self.run:
                assert answer.requeue_after, "the job would sleep for ever"
                self.wait(answer.requeue_after)
        return (self.now - began).total_seconds()

    @property
    def retry(self) -> Json:
        found: Json = self.status.get("retry", {})
        return found

    def says(self, kind: str) -> str:
        found: str = next(c["message"] for c in self.status["conditions"] if c["type"] == kind)
        return found


S, C, H, P, T = Exit.STORAGE_FAILED, Exit.CRASHED, Exit.STALLED, PREEMPTED, Exit.STOPPED
SEQUENCES: dict[str, tuple[list[tuple[Any, int]], list[float]]] = {
    # (how the run ended, newest checkpoint by then), seconds until the next one
    "an outage of storage": ([(S, 0)] * 5, [10, 20, 40, 80, 160]),
    "no delay is longer than the longest": ([(S, 0)] * 9, [10, 20, 40, 80, 160, 320, 600, 600, 600]),
    "progress starts the row again": ([(S, 0), (S, 0), (S, 20), (S, 20), (S, 40)], [10, 20, 10, 20, 10]),
    "an older checkpoint is no progress": ([(S, 20), (S, 10), (S, 20)], [10, 20, 40]),
    "another cause has a row of its own": ([(S, 0), (S, 0), (C, 0), (C, 0)], [10, 20, 10, 20]),
    "runs that stand still wait like other failures": ([(H, 0), (H, 0), (H, 20)], [10, 20, 10]),
    "the first preemption does not wait": ([(P, 0), (P, 0), (P, 0)], [0, 10, 20]),
    "preemption with progress never waits": ([(P, 10), (P, 20), (P, 30)], [0, 0, 0]),
    "free restarts of several causes are one row": ([(P, 0), (T, 0), (P, 0)], [0, 10, 20]),
    "a checkpoint on request is progress": ([(T, 10), (T, 20), (T, 20)], [0, 0, 10]),
    "a failure after a preemption waits": ([(P, 0), (S, 0), (P, 0)], [0, 10, 10]),
}  # fmt: skip


@pytest.mark.parametrize("case", SEQUENCES)
def test_delays(case: str) -> None:
    events, expected = SEQUENCES[case]
    life, delays = Life({"lifecycle.maxRestarts": 100}), []
    for how, step in events:
        life.start(*([ResumeRecord(time=0, step=step)] if step and how is not T else []))
        if how is P:
            life.end(137, disruption=P)
        else:
            life.end(how, step if how is T else 0)
        delays.append(life.until_next_run())
    assert delays == pytest.approx(expected, rel=0.2, abs=1)
    assert "nextTime" not in life.retry, "nothing waits any more"


def test_the_status_and_the_condition_say_when_and_why() -> None:
    life = Life({"lifecycle.maxRestarts": 5})
    for number in range(1, 4):
        life.start()
        life.end(Exit.SOURCE_UNAVAILABLE)
        assert (life.retry["reason"], life.retry["attempts"], life.retry["allowed"]) == (
            "SourceUnavailable", number, 5,
        )  # fmt: skip
        due = datetime.fromisoformat(life.retry["nextTime"])
        time = f"{due:%H:%M:%S} UTC"
        assert life.says("PodsReady").startswith(
            f"Run {number + 1} starts at {time} (attempt {number} after SourceUnavailable; "
            f"{number} of 5 restarts used)."
        )
        assert life.retry["message"] == f"Pod sample-{number}-worker-0: why"
        assert life.says("Training").startswith(f"{life.retry['message']}. Wait, or check the network"), "the remedy"
        life.until_next_run()
        assert life.now == due


def test_jobs_that_fail_together_do_not_restart_together() -> None:
    times = set()
    for number in range(8):
        life = Life(uid=f"u-{number}", settings=PlanSettings(backoff_seconds=300))
        life.start()
        life.end()
        times.add(life.retry["nextTime"])
    assert len(times) == 8


def test_free_restarts_without_progress_end_and_say_so() -> None:
    life = Life(settings=PlanSettings(max_free_restarts=3))
    for _ in range(3):
        life.start()
        life.end(137, disruption=PREEMPTED)
        life.until_next_run()
    life.start()
    life.end(137, disruption=PREEMPTED)
    assert life.status["phase"] == Phase.FAILED
    assert life.says("Failed").startswith(
        "The cluster removed pod sample-4-worker-0: PreemptionByScheduler. "
        "Restarts are free, but 3 in a row brought no new checkpoint."
    )
    assert life.status.get("restarts", 0) == 0


def test_suspending_and_resuming_starts_the_next_run_at_once() -> None:
    life = Life()
    life.start()
    life.end()
    life.changes = {"suspend": True}
    life.reconcile()
    assert "nextTime" not in life.retry
    life.changes = {}
    assert life.until_next_run() == 0
    assert life.retry["attempts"] == 1, "what happened is not forgotten"


@pytest.mark.parametrize("changes", [{"cancel": True}, {"suspend": True}], ids=str)
def test_a_job_that_no_longer_waits_announces_no_run(changes: Json) -> None:
    life = Life()
    life.start()
    life.end()
    assert life.retry["nextTime"]
    life.changes = changes
    life.reconcile()
    assert "nextTime" not in life.retry
    assert "starts at" not in life.says("PodsReady")


@pytest.mark.parametrize("code", [e for e in Exit if meaning(e).retry == "budget"], ids=lambda e: e.name)
def test_every_failure_that_may_pass_waits(code: Exit) -> None:
    life = Life()
    life.start()
    life.end(code)
    assert life.until_next_run() > 0


DAY = 86_400


def test_only_time_on_a_node_counts_for_the_deadline() -> None:
    life = Life({"lifecycle.activeDeadlineSeconds": 100})
    life.wait(DAY)  # in a queue, or unscheduled
    life.reconcile()
    life.start()
    life.wait(40)
    life.end(Exit.CRASHED)
    life.wait(DAY)  # the operator was down; the back-off is over
    assert life.until_next_run() == 0
    assert life.status["active"] == {"seconds": 40}
    life.start()
    life.wait(30)
    life.changes |= {"suspend": True}
    life.reconcile()
    life.reconcile()
    assert life.status["active"] == {"seconds": 70}
    life.wait(DAY)
    life.changes |= {"suspend": False}
    life.until_next_run()
    life.start()
    assert life.reconcile().requeue_after == 30
    life.wait(30)
    life.reconcile()
    life.reconcile()
    assert life.says("Failed").startswith("Pods of the job were on nodes for longer than the deadline of 100 s.")
    assert life.status["active"] == {"seconds": 100}


@pytest.mark.parametrize(
    ("ended", "seconds"),
    [(20, 20), (None, 500)],
    ids=["the pod says when it ended", "a pod that is gone counts until somebody looks"],
)
def test_an_end_that_nobody_saw_counts_as_far_as_it_is_known(ended: int | None, seconds: int) -> None:
    life = Life()
    life.start()
    gone = replace(life.pods[0], phase="Failed", bound_since="", exit_code=1,
                   ended_at=text(life.now + timedelta(seconds=ended or 0)))  # fmt: skip
    life.wait(500)
    life.pods = (gone,) if ended is not None else ()
    life.reconcile()
    assert life.status["active"] == {"seconds": seconds}


def test_a_pod_that_saves_after_the_others_have_ended_counts_until_it_is_gone() -> None:
    life = Life({"compute.nodes": 2, "network.profile": "tcp"}, PlanSettings(backoff_seconds=0))
    life.start()
    first, second = life.pods[0], replace(life.pods[0], uid="p-other", node_rank=1)
    life.wait(10)
    life.pods = (replace(first, phase="Failed", exit_code=1, bound_since="", ended_at=text(life.now)), second)
    life.reconcile()
    assert life.run == 0
    life.wait(300)
    life.pods = (replace(first, phase="Failed", exit_code=1, bound_since="", ended_at=text(BIRTH)),)
    life.reconcile()
    assert life.status["active"]["seconds"] == 310


def test_a_time_that_a_wrong_clock_wrote_delays_no_run() -> None:
    life = Life()
    life.start()
    life.end()
    life.status["retry"]["nextTime"] = text(life.now + timedelta(days=30))
    assert life.until_next_run() == 0


def test_a_pod_that_was_bound_while_nobody_looked_counts_from_then_on() -> None:
    life = Life()
    bound = life.now
    life.wait(60)
    life.pods = (ObservedPod("sample-1-worker-0", "p", 1, 0, "Running", bound_since=text(bound)),)
    life.reconcile()
    assert life.status["active"] == {"seconds": 0, "since": text(bound)}


@pytest.mark.parametrize("more", [30, 0], ids=["the old pod says when it ended", "no old pod is left"])
def test_the_time_between_pods_of_which_nobody_saw_the_change_does_not_count(more: int) -> None:
    life = Life({"lifecycle.activeDeadlineSeconds": 100})
    life.start()
    life.wait(20)
    life.reconcile(ResumeRecord(time=0, step=1))
    old = replace(life.pods[0], phase="Failed", bound_since="", ended_at=text(life.now + timedelta(seconds=more)))
    life.wait(DAY)  # the operator is down: a queue takes the pod, and admits the run again
    new = replace(life.pods[0], uid="p-new", bound_since=text(life.now))
    life.pods = (old, new) if more else (new,)
    life.reconcile()
    assert life.status["active"] == {"seconds": 20 + more, "since": text(life.now)}


def test_time_on_a_node_counts_while_the_operators_clock_is_behind_the_schedulers() -> None:
    life = Life({"lifecycle.activeDeadlineSeconds": 1000})
    life.start()
    life.pods = (replace(life.pods[0], bound_since=text(life.now + timedelta(seconds=600))),)
    life.status.pop("active")
    life.reconcile()
    for step in (1, 2, 3):
        life.wait(10)
        life.reconcile(ResumeRecord(time=0, step=step))
    assert life.status["active"]["seconds"] == 30


def test_time_that_a_replica_whose_clock_is_ahead_has_counted_does_not_count_again() -> None:
    life = Life({"lifecycle.activeDeadlineSeconds": 1000})
    life.start()
    life.wait(40)
    life.reconcile(ResumeRecord(time=0, step=1))
    life.wait(-30)
    life.reconcile(ResumeRecord(time=0, step=2))
    life.wait(40)
    life.reconcile(ResumeRecord(time=0, step=3))
    assert life.status["active"]["seconds"] == 50


def test_a_suspended_job_past_its_deadline_asks_for_no_pass() -> None:
    life = Life({"lifecycle.activeDeadlineSeconds": 10})
    life.start()
    life.changes |= {"suspend": True}
    pods = life.pods
    life.reconcile()
    life.wait(60)
    life.pods = pods  # its termination grace period is long
    assert (life.reconcile().requeue_after, life.status["phase"]) == (POLL_SECONDS, Phase.STOPPING)
    life.pods = ()
    assert (life.reconcile().requeue_after, life.status["phase"]) == (None, Phase.SUSPENDED)


DEFAULTS = PlanSettings(active_deadline_seconds=50, ttl_seconds_after_finished=70)
PINS: dict[str, tuple[PlanSettings, PlanSettings, Json, tuple[Any, Any]]] = {
    # settings at acceptance, later settings, spec, (deadline, TTL)
    "the defaults": (DEFAULTS, DEFAULTS, {}, (50, 70)),
    "a later change changes nothing": (DEFAULTS, PlanSettings(), {}, (50, 70)),
    "nor does one from none": (PlanSettings(), DEFAULTS, {}, (None, None)),
    "keys of the job win": (
        DEFAULTS, DEFAULTS, {"lifecycle": {"activeDeadlineSeconds": 9, "ttlSecondsAfterFinished": 0}}, (9, 0)),
}  # fmt: skip


@pytest.mark.parametrize("suspended", [False, True], ids=["at the first run", "before it"])
@pytest.mark.parametrize("case", PINS)
def test_the_operators_defaults_are_pinned_at_acceptance(case: str, suspended: bool) -> None:
    first, later, changes, (deadline, ttl) = PINS[case]
    life = Life(changes | {"suspend": suspended}, first)
    life.settings = later
    life.changes = changes
    if suspended:
        life.until_next_run()
    life.start()
    assert life.reconcile().requeue_after == deadline
    life.end(Exit.DATA_REFUSED)
    assert life.reconcile().requeue_after == ttl or (ttl == 0 and life.run == 0)


def test_keys_of_another_version_stay_in_the_status() -> None:
    life = Life()
    life.status |= {"novelty": {"a": 1}, "progress": {"step": 1, "novelty": 2}}
    life.start()
    assert (life.status["novelty"], life.status["progress"]) == ({"a": 1}, {"step": 1, "novelty": 2})
