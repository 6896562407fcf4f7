"""A job on a simulated cluster: a Training Operator, a garbage collector, kubelets, a queue, people, and the plan.

The cluster is what the plan observes; everybody acts on it in an order that a seed draws. The operator passes when
something has changed, or when its last plan said so, as the real one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from builders import Json, resource
from finetune_api.resource.status import Status
from finetune_api.runtime.exits import Exit
from finetune_api.runtime.report import FinalReport
from finetune_plan import statuses, stopping
from finetune_plan.backends import DEFAULT as BACKEND
from finetune_plan.decide import plan
from finetune_plan.model import Action, CreateRun, DeleteRun, Observed, ObservedPod, ObservedRun, Plan
from finetune_plan.settings import PlanSettings

SETTINGS = PlanSettings(backoff_seconds=2, max_backoff_seconds=8)
GRACE = timedelta(seconds=300)
UNPROVEN: Json = {"exit_code": None, "report": None, "disruption": ""}
"""What is known of the end of a pod whose run is gone, as cache.py has it."""


def text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Moment:
    """One pass: the status before it, the plan, and what the cluster holds."""

    before: Json
    after: Json
    answer: Plan
    active: tuple[ObservedPod, ...]
    making: list[str]
    """Runs that may still make pods."""
    crashes: int
    allowed: int


@dataclass
class Life:
    seed: int
    nodes: int = 1
    queue: bool = False
    allowed: int = 1
    """lifecycle.maxRestarts."""
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    spec: Json = field(default_factory=dict)
    status: Json = field(default_factory=dict)
    runs: dict[str, ObservedRun] = field(default_factory=dict)
    pods: dict[str, ObservedPod] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """UID of a pod -> UID of its run. Both may be gone."""
    broken: set[str] = field(default_factory=set)
    """Runs that have lost a pod: the others notice, although the Training Operator replaces it."""
    crashes: int = 0
    down: bool = False
    dying: bool = False
    """Whether the operator dies after its next write."""
    refusing: bool = False
    """Whether the API server takes no run and deletes none."""
    news: bool = True
    """Whether anything has changed since the last pass."""
    due: datetime | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = Random(self.seed)
        self.spec |= {"compute.nodes": self.nodes, "network.profile": "tcp", "lifecycle.maxRestarts": self.allowed}
        self.spec |= {"queue.name": "team"} if self.queue else {}

    def note(self, what: str) -> None:
        self.news = True
        self.log.append(f"{text(self.now)[11:19]} {what}")

    # The cluster

    def set_run(self, run: ObservedRun, **changes: Any) -> None:
        self.runs[run.uid] = replace(run, **changes)
        self.note(f"{run.name}: {changes}")

    def set_pod(self, pod: ObservedPod, **changes: Any) -> None:
        self.pods[pod.uid] = replace(pod, **changes)
        self.note(f"{pod.name}: { ({k: str(v)[:20] for k, v in changes.items()}) }")

    def remove(self, pod: ObservedPod, by: str) -> None:
        del self.pods[pod.uid]
        self.broken |= {self.owners[pod.uid]} if pod.phase == "Running" else set()
        self.note(f"{pod.name} is gone ({by})")

    def delete(self, pod: ObservedPod) -> None:
        """With grace: a pod that runs, or that a node has, has time to end."""
        if not pod.bound_since:
            self.remove(pod, "deleted")
        elif not pod.termination_deadline:
            self.set_pod(pod, termination_deadline=text(self.now + GRACE))

    def pods_of(self, run: ObservedRun) -> tuple[ObservedPod, ...]:
        return tuple(pod for pod in self.pods.values() if self.owners[pod.uid] == run.uid)

    def training(self) -> list[ObservedPod]:
        return [pod for pod in self.pods.values() if pod.phase == "Running" and not pod.termination_deadline]

    def end(self, pod: ObservedPod, code: int) -> None:
        signalled = code > 128
        report = FinalReport(time=self.now.timestamp(), exit_code=code, reason="", message="m", step=1,
                             result="" if code else "/r")  # fmt: skip
        self.set_pod(pod, phase="Failed" if code else "Succeeded", exit_code=code, bound_since="",
                     report=None if signalled else report, ended_at=text(self.now))  # fmt: skip

    # Who acts on it

    def training_operator(self) -> None:
        for run in [run for run in self.runs.values() if not run.deleting]:
            pods = self.pods_of(run)
            if not run.reconciled:
                self.set_run(run, reconciled=True)
            elif run.over or run.suspended:
                for pod in stopping.undeleted(pods):
                    self.delete(pod)
            elif self._makes_pods(run):
                self._make_pods(run)
            else:
                self.set_run(run, over=True)

    def _makes_pods(self, run: ObservedRun) -> bool:
        """It is over with its first pod that fails, or that is deleted while it runs, and with rank 0's success."""
        ends = (
            pod.phase == "Failed" or (pod.phase == "Running" and pod.termination_deadline)
            or (pod.phase == "Succeeded" and pod.node_rank == 0)
            for pod in self.pods_of(run)
        )  # fmt: skip
        return not (run.deleting or run.over or run.suspended or any(ends))

    def _make_pods(self, run: ObservedRun) -> None:
        taken = {pod.name for pod in self.pods.values()}
        for rank in range(self.nodes):
            if (name := BACKEND.host(run.name, rank)) not in taken:
                uid = f"pod-{len(self.owners)}"
                self.owners[uid] = run.uid
                self.set_pod(ObservedPod(name, uid, run.number, rank, "Pending"))

    def garbage_collector(self) -> None:
        for pod in list(self.pods.values()):
            run = self.runs.get(self.owners[pod.uid])
            if run is None or run.deleting:
                self.delete(pod)
        for run in [run for run in self.runs.values() if run.deleting and not self.pods_of(run)]:
            del self.runs[run.uid]
            self.note(f"{run.name} is gone")

    def kubelet(self, share: float = 0.6) -> None:
        for pod in list(self.pods.values()):
            if self.draw.random() > share:
                continue
            if pod.phase == "Pending":
                self.set_pod(pod, phase="Running", bound_since=text(self.now))
            elif pod.termination_deadline and pod.phase == "Running":
                self.end(pod, self.draw.choice([Exit.STOPPED, 137]))
            elif pod.termination_deadline:
                self.remove(pod, "kubelet")

    def kueue(self) -> None:
        for run in [run for run in self.runs.values() if self.queue and not (run.deleting or run.over)]:
            self.set_run(run, suspended=not run.suspended)

    def trainer(self) -> None:
        """A whole gang that runs finishes, unless it has lost a pod, which may cost a restart."""
        gang = self.training()
        runs = {self.owners[pod.uid] for pod in gang}
        if len(gang) == self.nodes and len(runs) == 1:
            lost = bool(runs & self.broken)
            self.crashes += lost
            for pod in gang:
                self.end(pod, Exit.PEER_LOST if lost else Exit.OK)

    # What goes wrong

    def a_trainer_crashes(self) -> None:
        for pod in self.training()[:1]:
            self.crashes += 1
            self.end(pod, self.draw.choice([Exit.CRASHED, Exit.STORAGE_FAILED]))

    def a_pod_is_evicted(self) -> None:
        for pod in self.training()[:1]:
            self.set_pod(pod, disruption="EvictionByEvictionAPI")
            self.delete(self.pods[pod.uid])

    def a_pod_is_deleted(self) -> None:
        self.delete(pod) if (pod := self._any_pod()) else None

    def a_pod_is_deleted_by_force(self) -> None:
        self.remove(pod, "force") if (pod := self._any_pod()) else None

    def a_run_is_deleted(self) -> None:
        for run in list(self.runs.values())[:1]:
            del self.runs[run.uid]
            self.note(f"{run.name} is gone, not its pods")

    def the_job_is_suspended_or_resumed(self) -> None:
        self.spec["suspend"] = not self.spec.get("suspend")
        self.note(f"suspend: {self.spec['suspend']}")

    def the_job_is_cancelled(self) -> None:
        """Seldom; and it may be taken back."""
        if self.spec.get("cancel") or self.draw.random() < 0.1:
            self.spec["cancel"] = not self.spec.get("cancel")
            self.note(f"cancel: {self.spec['cancel']}")

    def the_operator_dies_or_starts(self) -> None:
        self.down = not self.down
        self.note(f"operator down: {self.down}")

    def the_operator_dies_in_its_next_pass(self) -> None:
        self.dying = True

    def the_api_server_refuses_or_recovers(self) -> None:
        self.refusing = not self.refusing
        self.note(f"runs refused: {self.refusing}")

    def time_passes(self) -> None:
        self.now += timedelta(seconds=self.draw.choice([1, 5, 30, 70, 400]))

    def _any_pod(self) -> ObservedPod | None:
        return self.draw.choice(list(self.pods.values())) if self.pods else None

    # The operator

    def passes(self) -> Iterator[Moment]:
        """Those that follow each other now: one that changed something is followed by another."""
        while not self.down and (self.news or (self.due and self.due <= self.now)):
            self.news = False
            yield self._pass()

    def _pass(self) -> Moment:
        before = self.status
        answer = plan(self._observed(), SETTINGS, self.now, BACKEND)
        after = answer.status.model_dump(mode="json", exclude_none=True)
        making = [run.name for run in self.runs.values() if self._makes_pods(run)]
        active = stopping.active(self.pods.values())
        moment = Moment(before, after, answer, active, making, self.crashes, self.allowed)
        if after != before:
            self.status = after
            self.note(f"{after['phase']}, run {after.get('run')}, restarts {after.get('restarts')}")
            if self.draw.random() < 0.5:
                self._may_die()
        self.due = None if answer.requeue_after is None else self.now + timedelta(seconds=answer.requeue_after)
        for action in answer.actions:
            if not self.down:
                self._carry_out(action)
                self._may_die()
        return moment

    def _may_die(self) -> None:
        """After a write: what a plan had in mind besides is not done."""
        if self.dying:
            self.dying, self.down = False, True
            self.note("the operator dies")

    def _carry_out(self, action: Action) -> None:
        if self.refusing:
            self.due = self.now + timedelta(seconds=1)
        elif isinstance(action, DeleteRun) and (run := self.runs.get(action.uid)):
            self.set_run(run, deleting=True)
        elif isinstance(action, CreateRun):
            name = action.manifest["metadata"]["name"]
            if not {name, action.previous} & {run.name for run in self.runs.values()}:
                number = int(name.rpartition("-")[2])
                uid = f"run-{len(self.log)}"
                self.set_run(ObservedRun(name, number, uid=uid, created=text(self.now), suspended=self.queue,
                                         reconciled=False))  # fmt: skip

    def _observed(self) -> Observed:
        """As cache.py and observe.py do: pods without their run are the last run's, unless it was never seen."""
        body = resource(self.spec)
        body["metadata"] |= {"uid": "u-1", "namespace": "team", "generation": 1}
        left = [pod for pod in self.pods.values() if self.owners[pod.uid] not in self.runs]
        known = [pod for pod in self.pods.values() if self.owners[pod.uid] in self.runs]
        if not statuses.is_claimed(Status.model_validate(self.status)):
            last = (
                self.status.get("run")
                if not any(r.number == self.status.get("run") for r in self.runs.values())
                else None
            )
            known += [replace(pod, **UNPROVEN) for pod in left if pod.run == last]
        previous = tuple(f"pod {pod.name}" for pod in left) if not self.runs else ()
        return Observed(body | {"status": self.status}, tuple(self.runs.values()), tuple(known), previous=previous)


CONTROLLERS: tuple[Callable[[Life], None], ...] = (Life.training_operator, Life.garbage_collector, Life.kubelet)
TROUBLES: tuple[Callable[[Life], None], ...] = (
    Life.a_trainer_crashes, Life.a_pod_is_evicted, Life.a_pod_is_deleted, Life.a_pod_is_deleted_by_force,
    Life.a_run_is_deleted, Life.the_job_is_suspended_or_resumed, Life.the_job_is_cancelled, Life.kueue, Life.trainer,
    Life.the_operator_dies_or_starts, Life.the_operator_dies_in_its_next_pass,
    Life.the_api_server_refuses_or_recovers, Life.time_passes,
)  # fmt: skip
