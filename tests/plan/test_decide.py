"""What the plan does about a job, one situation a row. How it stops is in test_stopping.py."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from builders import Json
from finetune_api.resource.reasons import RESTARTING
from finetune_api.resource.status import Phase
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import ProgressRecord
from finetune_api.validation.predicates import find
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import POLL_SECONDS, plan
from finetune_plan.model import CreateRun, ObservedClaim, ObservedPod, ObservedQueue, ObservedRun
from finetune_plan.settings import PlanSettings
from plan.situations import NOW, RUN1, accepted, condition, created, decided, deleted, ended, pod, seen, written


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


def test_a_loss_is_short_enough_for_a_column() -> None:
    record = ProgressRecord(time=0, step=5, total_steps=20, epoch=0.25, loss=1.7234567165374756, learning_rate=1e-4,
                            grad_norm=1.0, tokens_per_second=100, eta_seconds=12.4)  # fmt: skip
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1)), records=(record,)))
    assert answer.status.progress is not None
    assert answer.status.progress.loss == 1.723457


def test_progress_that_is_known_changes_nothing_as_time_passes() -> None:
    record = ProgressRecord(time=0, step=5, total_steps=20, epoch=0.25, loss=1.7, learning_rate=1e-4,
                            grad_norm=1.0, tokens_per_second=100, eta_seconds=12.4)  # fmt: skip
    pods = tuple(pod(rank, bound_since="2026-01-01T11:00:00Z") for rank in (0, 1))
    first = decided(seen(status=accepted(), runs=RUN1, pods=pods, records=(record,))).status
    known = seen(status=first.model_dump(mode="json", exclude_none=True), runs=RUN1, pods=pods, records=(record,))
    later = plan(known, PlanSettings(), NOW + timedelta(minutes=1), BACKEND).status
    assert later == first


def test_success_is_the_report_of_node_0() -> None:
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK), pod(1))))
    assert answer.actions == ()
    assert answer.status.phase is Phase.SUCCEEDED
    assert answer.status.result is not None
    assert answer.status.result.uri == "/out/result"
    assert condition(answer, "Ready") == ("True", "Succeeded")


def test_a_success_shows_the_last_step_whatever_progress_was_read_before() -> None:
    written = accepted(progress={"step": 6, "totalSteps": 7, "percent": 85, "loss": 3.0, "etaSeconds": 2})
    progress = decided(seen(status=written, runs=RUN1, pods=(ended(0, Exit.OK), pod(1)))).status.progress
    assert progress is not None
    assert (progress.step, progress.totalSteps, progress.percent, progress.etaSeconds) == (7, 7, 100, 0)
    assert progress.loss == 2.25


def test_success_that_is_seen_late_counts_although_the_job_was_cancelled_meanwhile() -> None:
    answer = decided(
        seen({"cancel": True}, status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK), ended(1, Exit.OK)))
    )
    assert answer.status.phase is Phase.SUCCEEDED


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


def test_pods_that_still_run_a_minute_after_the_end_are_removed() -> None:
    ended_at = (NOW - timedelta(seconds=40)).strftime("%Y-%m-%dT%H:%M:%SZ")
    young = decided(seen(status=FINISHED | {"completionTime": ended_at}, runs=RUN1, pods=(ended(0, Exit.OK), pod(1))))
    old = decided(seen(status=FINISHED, runs=RUN1, pods=(ended(0, Exit.OK), pod(1))))
    quiet = decided(seen(status=FINISHED, runs=RUN1, pods=(ended(0, Exit.OK), ended(1, Exit.OK))))
    assert (deleted(young), young.requeue_after) == ([], 20)
    assert deleted(old) == ["sample-1"]
    assert (deleted(quiet), quiet.requeue_after) == ([], None)


def test_cancelling_ends_the_job_for_good() -> None:
    answer = decided(seen({"cancel": True}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert deleted(answer) == ["sample-1"]
    assert condition(answer, "FailureTarget") == ("True", "Cancelled")
    over = decided(seen(status=written(answer)))
    assert (over.actions, over.status.phase) == ((), Phase.CANCELLED)
    assert over.status.completionTime


def test_suspending_gives_the_gpus_back_and_resuming_starts_the_next_run() -> None:
    suspended = decided(seen({"suspend": True}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert deleted(suspended) == ["sample-1"]
    assert suspended.status.phase is Phase.STOPPING
    suspended = decided(seen({"suspend": True}, status=written(suspended)))
    assert suspended.status.phase is Phase.SUSPENDED
    resumed = decided(seen(status=written(suspended)))
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


FAILURES: dict[str, tuple[tuple[ObservedPod, ...], int, Json, bool, int]] = {
    # pods, restarts so far, spec, another run?, restarts afterwards
    "a crash costs one restart": ((ended(0, Exit.CRASHED), pod(1)), 0, {}, True, 1),
    "the last restart is the last": ((ended(0, Exit.CRASHED), pod(1)), 3, {}, False, 3),
    "maxRestarts 0 allows none": (
        (ended(0, Exit.CRASHED), pod(1)), 0, {"lifecycle.maxRestarts": 0}, False, 0),
    "bad data fails the same way again": ((ended(0, Exit.DATA_REFUSED),), 0, {}, False, 0),
    "a checkpoint on request costs nothing": ((ended(0, Exit.STOPPED), ended(1, Exit.STOPPED)), 3, {}, True, 3),
    "an evicted pod costs nothing": (
        (ended(1, Exit.PEER_LOST), replace(pod(0, "Failed", exit_code=137), disruption="Evicted")), 3, {}, True, 3),
    "the peer that was lost first is the cause": (
        (ended(0, Exit.PEER_LOST, at=5), ended(1, Exit.NON_FINITE, at=9)), 0, {}, False, 0),
    "out of memory ends the job": ((pod(0), ended(1, Exit.OUT_OF_MEMORY)), 0, {}, False, 0),
    "an end without a report is no success": ((pod(0, "Succeeded", exit_code=0), pod(1)), 0, {}, True, 1),
    "a killed pod without a report costs one": ((pod(0), pod(1, "Failed", exit_code=137)), 0, {}, True, 1),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_pod_ends_the_run_of_the_gang(case: str) -> None:
    pods, before, changes, again, after = FAILURES[case]
    answer = decided(seen(changes, status=accepted(restarts=before), runs=RUN1, pods=pods))
    assert deleted(answer) == (["sample-1"] if again else []), "a run that ended the job stays for its logs"
    assert (answer.status.restarts or 0) == after
    assert (answer.status.phase is Phase.STARTING) == again
    over = decided(seen(changes, status=written(answer), runs=RUN1, pods=tuple(p for p in pods if p.exit_code)))
    assert (over.status.completionTime is None) == again


def test_the_deadline_is_ours() -> None:
    start = (NOW - timedelta(seconds=100)).strftime("%Y-%m-%dT%H:%M:%SZ")
    answer = decided(seen({"lifecycle.activeDeadlineSeconds": 60}, status=accepted(startTime=start), runs=RUN1,
                          pods=(pod(0, bound_since=start), pod(1))))  # fmt: skip
    assert deleted(answer) == ["sample-1"]
    assert condition(answer, "FailureTarget") == ("True", "DeadlineExceeded")
    assert condition(decided(seen(status=written(answer))), "Failed") == ("True", "DeadlineExceeded")


def test_an_operator_upgrade_that_refuses_a_running_job_leaves_it_alone() -> None:
    answer = decided(seen({"compute.gpu_type": "X9000"}, status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert answer.actions == ()
    assert answer.status.phase is not Phase.FAILED


def test_a_failure_is_counted_once_although_the_operator_dies_before_it_removed_the_run() -> None:
    pods = (ended(0, Exit.CRASHED), pod(1))
    first = decided(seen(status=accepted(), runs=RUN1, pods=pods))
    again = decided(seen(status=written(first), runs=RUN1, pods=pods))
    assert (again.status.restarts, deleted(again)) == (1, ["sample-1"])
    second = decided(seen(status=written(again)))
    assert (created(second), second.status.restarts) == (["sample-2"], 1)
    failed = (replace(ended(0, Exit.CRASHED), run=2),)
    third = decided(seen(status=written(second), runs=(ObservedRun("sample-2", 2),), pods=failed))
    assert (third.status.restarts, deleted(third)) == (2, ["sample-2"])


def test_a_run_that_was_claimed_but_never_seen_is_created_under_the_same_number() -> None:
    answer = decided(seen(status=accepted()))
    assert created(answer) == ["sample-1"]
    assert condition(answer, "PodsReady") == ("False", "Creating")


def test_a_run_that_was_seen_and_is_gone_is_followed_by_the_next() -> None:
    running = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    answer = decided(seen(status=written(running)))
    [action] = answer.actions
    assert isinstance(action, CreateRun)
    assert (created(answer), action.previous) == (["sample-2"], "sample-1")


def test_what_the_api_server_objects_to_is_said_and_tried_again() -> None:
    answer = decided(seen(status=accepted(), refusal="exceeded quota: gpus"))
    assert created(answer) == ["sample-1"]
    assert condition(answer, "PodsReady") == ("False", "CreateRefused")


def test_later_runs_take_what_was_resolved_at_acceptance() -> None:
    first = decided(seen({"training.mode": "lora"}))
    running = decided(seen({"training.mode": "lora"}, status=written(first), runs=RUN1, pods=(pod(0), pod(1))))
    upgraded = PlanSettings(trainer_image="trainer:next")
    changed = seen({"training.mode": "lora", "hyperparameters.learning_rate": 0.5}, status=written(running))
    second = plan(changed, upgraded, NOW, BACKEND)
    manifests = [a.manifest for answer in (first, second) for a in answer.actions if isinstance(a, CreateRun)]
    one, two = ({r: body["template"] for r, body in m["spec"]["pytorchReplicaSpecs"].items()} for m in manifests)
    for template in (*one.values(), *two.values()):
        template["metadata"]["labels"].pop("finetune.dev/run")
        env = template["spec"]["containers"][0]["env"]
        env[:] = [entry for entry in env if entry["name"] != "PET_MASTER_ADDR"]  # each run has pods of its own
    assert created(second) == ["sample-2"]
    assert one == two


def test_a_run_is_not_made_from_what_the_administrator_has_forbidden_meanwhile() -> None:
    job: Json = {"pods.serviceAccountName": "cloud"}
    first = plan(seen(job), PlanSettings(service_accounts=("cloud",)), NOW, BACKEND)
    answer = decided(seen(job, status=written(first)))
    assert answer.actions == ()
    assert condition(answer, "PodsReady") == ("False", "ServiceAccountNotAllowed")


EARLIER: dict[str, Json] = {
    "a variable of the launcher": {"pods.env": [{"name": "MASTER_PORT", "value": "1"}]},
    "no CPUs": {"pods.cpu": "0"},
    "no shared memory": {"pods.sharedMemory": "0"},
    "thousandths of bytes": {"pods.memory": "68719476736000m"},
}
"""What an earlier version accepted, in keys that are fixed once there is a run."""


@pytest.mark.parametrize("case", EARLIER)
def test_what_pods_an_earlier_version_accepted_the_next_run_has(case: str) -> None:
    running = decided(seen(EARLIER[case], status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    assert created(decided(seen(EARLIER[case], status=written(running)))) == ["sample-2"]
    refused = decided(seen(EARLIER[case]))
    assert (created(refused), condition(refused, "Accepted")[0]) == ([], "False")


def test_how_pods_of_a_leaving_run_end_says_nothing() -> None:
    leaving = (ObservedRun("sample-1", 1, deleting=True),)
    answer = decided(
        seen(status=accepted(restarts=3), runs=leaving, pods=(replace(pod(0, "Failed"), exit_code=137), pod(1)))
    )
    assert answer.actions == ()
    assert answer.status.restarts == 3
    assert answer.status.completionTime is None


@pytest.mark.parametrize(
    ("termination_deadline", "reason"),
    [("2026-01-01T11:59:51Z", RESTARTING.name), ("2026-01-01T11:59:49Z", "PodOverdue")],
    ids=["within its time", "after it"],
)
def test_a_pod_that_does_not_go_is_named_with_the_way_out(termination_deadline: str, reason: str) -> None:
    before = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), ended(1, Exit.CRASHED))))
    leaving = (ObservedRun("sample-1", 1, deleting=True),)
    answer = decided(
        seen(status=written(before), runs=leaving, pods=(pod(0), pod(1, termination_deadline=termination_deadline)))
    )
    assert answer.actions == ()
    assert condition(answer, "PodsReady") == ("False", reason)
    assert condition(answer, "Training") == ("False", RESTARTING.name)
    [said] = [x.message for x in answer.status.conditions or () if x.type == "PodsReady"]
    assert (reason == "PodOverdue") is ("run `kubectl delete pod sample-1-1 --force -n team`." in said)
    assert answer.requeue_after == POLL_SECONDS
    assert created(decided(seen(status=written(answer)))) == ["sample-2"]


def test_a_deleted_pod_restarts_the_gang_and_costs_nothing() -> None:
    ready = decided(seen(status=accepted(restarts=3), runs=RUN1, pods=(pod(0), pod(1))))
    assert condition(ready, "PodsReady") == ("True", "Running")
    answer = decided(seen(status=written(ready), runs=RUN1, pods=(pod(0),)))
    assert deleted(answer) == ["sample-1"]
    assert answer.status.restarts == 3


def test_a_queue_that_takes_the_pods_away_is_no_failure() -> None:
    ready = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    held = (ObservedRun("sample-1", 1, suspended=True),)
    answer = decided(seen(status=written(ready), runs=held, pods=(replace(pod(0, "Failed"), exit_code=137),)))
    assert answer.actions == ()
    assert condition(answer, "PodsReady") == ("False", "Queued")
    back = decided(seen(status=written(answer), runs=RUN1, pods=()))
    assert (back.actions, back.status.phase) == ((), Phase.STARTING)


QUEUE: Json = {"queue.name": "research"}
HELD = (ObservedRun("sample-1", 1, suspended=True),)


@pytest.mark.parametrize(
    ("changes", "queue", "reason", "end"),
    [
        (QUEUE, ObservedQueue(), "Queued", "it starts when quota is free."),
        (QUEUE, ObservedQueue("8 more needed"), "Queued", "it starts when quota is free. Kueue: 8 more needed"),
        (QUEUE, ObservedQueue(managed=False), "QueueUnmanaged", "create it again without spec.queue."),
        ({}, ObservedQueue(managed=False), "Queued", "it starts when quota is free."),
    ],
    ids=["not read yet", "Kueue says why", "nothing manages the queue", "somebody suspended a job without a queue"],
)
def test_a_queued_job_says_why(changes: Json, queue: ObservedQueue, reason: str, end: str) -> None:
    answer = decided(replace(seen(changes, status=accepted(), runs=HELD), queue=queue))
    [said] = [x for x in answer.status.conditions or () if x.type == "PodsReady"]
    assert (answer.actions, answer.status.phase, said.reason) == ((), Phase.QUEUED, reason)
    assert said.message.endswith(end)


@pytest.mark.parametrize("code", [None, 137], ids=["they still run", "they were killed"])
def test_a_job_that_is_admitted_before_its_pods_have_ended_gets_another_run_for_free(code: int | None) -> None:
    held = decided(seen(QUEUE, status=accepted(restarts=3), runs=HELD))
    old = replace(pod(0, exit_code=code), termination_deadline="2026-01-01T12:05:00Z")
    answer = decided(seen(QUEUE, status=written(held), runs=RUN1, pods=(old,)))
    assert (deleted(answer), answer.status.restarts) == (["sample-1"], 3)
    assert created(decided(seen(QUEUE, status=written(answer)))) == ["sample-2"]


def test_a_run_that_names_a_queue_is_created_suspended() -> None:
    for changes, expected in (({}, None), (QUEUE, True)):
        [create] = decided(seen(changes)).actions
        assert isinstance(create, CreateRun)
        assert find(create.manifest, BACKEND.suspend_key) is expected


def test_a_refused_job_that_is_looked_at_again_says_the_same_at_the_same_time() -> None:
    first = decided(seen({"compute.gpu_type": None}))
    later = plan(
        seen({"compute.gpu_type": None}, status=written(first)), PlanSettings(), NOW + timedelta(hours=1), BACKEND
    )
    assert later.status == first.status


def test_a_suspended_run_that_is_still_there_goes_before_the_next_is_created() -> None:
    suspended = decided(seen({"suspend": True}, status=accepted()))
    assert suspended.status.phase is Phase.SUSPENDED
    resumed = decided(seen(status=written(suspended), runs=RUN1, pods=(pod(0), pod(1))))
    assert (deleted(resumed), created(resumed)) == (["sample-1"], [])


def test_a_run_that_is_older_than_the_claimed_one_goes() -> None:
    answer = decided(seen(status=accepted(run=2), runs=RUN1, pods=(pod(0), pod(1))))
    assert (deleted(answer), created(answer)) == (["sample-1"], [])


@pytest.mark.parametrize(
    "pods", [(pod(0),), (pod(0), replace(pod(1, "Pending"), uid="new")), (pod(0), replace(pod(1), uid="new"))],
    ids=["missing", "replaced by one that waits", "replaced by one that runs"],
)  # fmt: skip
def test_a_gang_that_is_no_longer_whole_starts_again_for_free(pods: tuple[ObservedPod, ...]) -> None:
    whole = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1))))
    answer = decided(seen(status=written(whole), runs=RUN1, pods=pods))
    assert deleted(answer) == ["sample-1"]
    assert condition(answer, "Training") == ("False", "Restarting")
    assert answer.status.restarts == 0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: team, requested: pods=1', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest"', "PodSecurity"),
        ("admission webhook denied the request", "PodsRefused"),
    ],
)
def test_pods_that_were_refused_say_why_until_they_are_there(said: str, reason: str) -> None:
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0),), pods_refusal=said))
    [message] = [c.message for c in answer.status.conditions or () if c.type == "PodsReady"]
    assert condition(answer, "PodsReady") == ("False", reason)
    assert message.startswith(f"1 of 2 pods are running. {said}. ")
    whole = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1)), pods_refusal=said))
    assert condition(whole, "PodsReady") == ("True", "Running")


def test_a_pod_that_waits_says_why() -> None:
    stuck = replace(pod(1, "Pending"), waiting="ImagePullBackOff: no such image")
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), stuck)))
    [message] = [c.message for c in answer.status.conditions or () if c.type == "PodsReady"]
    assert message == (
        "1 of 2 pods are running. Pod sample-1-1 is waiting: ImagePullBackOff: no such image. "
        "Check pods.image, and pods.imagePullSecrets if the registry requires a login."
    )
    assert condition(answer, "PodsReady") == ("False", "ImagePull")


def test_time_alone_wakes_a_job_with_a_deadline() -> None:
    bound = pod(0, bound_since="2026-01-01T11:59:00Z")
    answer = decided(
        seen({"lifecycle.activeDeadlineSeconds": 600}, status=accepted(), runs=RUN1, pods=(bound, pod(1)))
    )
    assert answer.requeue_after == 540


def test_an_edit_of_the_lifecycle_is_seen_by_generation() -> None:
    running = written(decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1)))))
    answer = decided(seen(status=running | {"observedGeneration": 2}, runs=RUN1, pods=(pod(0), pod(1))))
    assert answer.status.observedGeneration == 3


def test_a_success_is_noted_on_the_claim_and_found_there_by_the_same_job() -> None:
    done = decided(seen(status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK), ended(1, Exit.OK))))
    assert done.record_result is not None
    assert done.record_result.claim == "models"
    claim = {done.record_result.annotation: done.record_result.text, "somebody/else": "x"}
    answer = decided(seen(claim=ObservedClaim(claim)))
    assert (answer.actions, answer.status.phase) == ((), Phase.SUCCEEDED)
    assert answer.status.run is None
    assert answer.status.result == done.status.result
    assert condition(answer, "Complete") == condition(answer, "Ready") == ("True", "AlreadyComplete")
    [message] = [c.message for c in answer.status.conditions or () if c.type == "Complete"]
    assert message.endswith("To train again, set output.uri to another folder.")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hyperparameters.learning_rate": 3e-5}, None),
        ({"output.uri": "pvc://models/other"}, None),
        ({"output.uri": "pvc://other/out"}, None),
        ({}, "not JSON"), ({}, "[]"), ({}, '{"configuration": "sha256:1"}'),
    ],
    ids=str,
)  # fmt: skip
def test_another_job_and_a_spoilt_note_train(changes: Json, text: str | None) -> None:
    done = decided(seen(status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK),)))
    assert done.record_result is not None
    claim = ObservedClaim({done.record_result.annotation: text or done.record_result.text})
    assert created(decided(seen(changes, claim=claim))) == ["sample-1"]


def test_a_job_whose_output_is_no_claim_is_noted_nowhere() -> None:
    alone = {"compute.nodes": 1, "output": {"ephemeral": True}}
    done = decided(seen(alone, status=accepted(), runs=RUN1, pods=(ended(0, Exit.OK),)))
    assert (done.status.phase, done.record_result) == (Phase.SUCCEEDED, None)


ONE_NODE, MANY = ("ReadWriteOnce",), ("ReadWriteOnce", "ReadWriteMany")


def test_several_nodes_on_a_claim_that_one_node_mounts_are_refused_before_there_are_pods() -> None:
    answer = decided(seen(claim=ObservedClaim(access_modes=("ReadWriteOnce", "ReadWriteOncePod"))))
    assert (answer.actions, answer.status.phase, answer.requeue_after) == ((), Phase.FAILED, 60)
    assert condition(answer, "Accepted") == ("False", "OutputNotShared")
    [message] = [c.message for c in answer.status.conditions or () if c.type == "Accepted"]
    assert message == (
        "spec.output.uri: The claim models can be mounted by one node (ReadWriteOnce, ReadWriteOncePod), and "
        "the job has 2. Name a claim with the access mode ReadWriteMany, or set compute.nodes to 1."
    )


@pytest.mark.parametrize(
    ("changes", "modes"),
    [({}, MANY), ({}, ()), ({"compute.nodes": 1}, ONE_NODE), ({}, ("ReadWriteMany",))],
    ids=["one of the modes is shared", "no such claim yet", "one node", "shared"],
)
def test_a_claim_that_all_nodes_can_mount_is_fine(changes: Json, modes: tuple[str, ...]) -> None:
    assert created(decided(seen(changes, claim=ObservedClaim(access_modes=modes)))) == ["sample-1"]


def test_a_job_that_runs_is_not_refused_for_its_claim() -> None:
    claim = ObservedClaim(access_modes=ONE_NODE)
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), pod(1)), claim=claim))
    assert (answer.actions, condition(answer, "Accepted")[0]) == ((), "True")


@pytest.mark.parametrize("output", [None, {"uri": "/out"}], ids=str)
def test_a_job_that_was_accepted_without_an_output_that_is_kept_gets_its_next_run(output: Json | None) -> None:
    status = accepted(resolved={"runConfig": "{}", "image": "old"})
    answer = decided(seen({"output": output}, status=status, runs=RUN1, pods=(ended(1, Exit.CRASHED), pod(0))))
    assert answer.status.restarts == 1
    again = answer.status.model_dump(mode="json", exclude_none=True)
    assert created(decided(seen({"output": output}, status=again))) == ["sample-2"]


@pytest.mark.parametrize(("age", "left"), [(0.0, 10.0), (8.0, 2.0), (-60.0, 10.0)])
def test_the_loss_of_a_peer_waits_for_the_peers_own_words(age: float, left: float) -> None:
    lost = ended(1, Exit.PEER_LOST, at=NOW.timestamp() - age, cause=False)
    answer = decided(seen(status=accepted(), runs=RUN1, pods=(pod(0), lost)))
    assert (answer.actions, answer.status.restarts) == ((), None)
    assert answer.requeue_after == pytest.approx(left)


@pytest.mark.parametrize(
    ("first", "age"), [(pod(0), 10.0), (ended(0, Exit.CRASHED), 0.0), (ended(0, Exit.PEER_LOST), 0.0)], ids=str
)
def test_nobody_waits_once_the_peer_has_spoken_or_had_its_time(first: ObservedPod, age: float) -> None:
    lost = ended(1, Exit.PEER_LOST, at=NOW.timestamp() - age, cause=False)
    assert deleted(decided(seen(status=accepted(), runs=RUN1, pods=(first, lost)))) == ["sample-1"]
