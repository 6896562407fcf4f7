"""Jobs under the real Kueue: held back, admitted, preempted and admitted again; the test plays the nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from builders import Json, put
from finetune_api.resource import names
from operating.plane import unserved
from operating.process import OperatorProcess
from operating.team import SMALL, Team, condition, message
from testbed.control_plane import ControlPlane
from testbed.kueue import create_priority, create_queue, kueue_crds, start_kueue
from testbed.pods import run_pod
from testbed.watch import states, wait_for, wait_for_all

QUEUE = "research"
ONE_GPU: Json = SMALL | {"compute.gpu_count": 1, "queue.name": QUEUE}
QUOTA = 2
GPU = "nvidia.com/gpu"
COMMON = {"cpu": "64", "memory": "1Ti"}
"""Of what every pod requests, so much that only GPUs are scarce."""
ORDINARY = [f"job-{number}" for number in range(9)]
URGENT = "urgent"
PATIENCE_S = 180


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Training Operator, operator, and Kueue's kinds; nothing manages queues yet."""
    folder = tmp_path_factory.mktemp("kueue")
    with unserved(folder, *kueue_crds()) as found:
        found.run("operator", OperatorProcess(found.cluster.kubeconfig, folder))
        yield found


@dataclass(frozen=True)
class Early:
    """A job that was there before Kueue was, and what it said meanwhile."""

    team: Team
    status: Json
    run: Json


@pytest.fixture(scope="module")
def early(plane: ControlPlane) -> Early:
    """From here on Kueue runs."""
    team = Team(plane.cluster.api, plane.cluster.namespace("early"), PATIENCE_S)
    team.submit(ONE_GPU, "early")
    status = team.until(lambda s: condition(s, "PodsReady")[1] == "QueueUnmanaged", "early")
    found = Early(team, status, team.api.get(f"{team.runs}/early-1"))
    start_kueue(plane)
    create_priority(plane.cluster, "high", 1000)
    return found


def test_a_job_waits_for_a_queue_that_nothing_manages_and_says_so(team: Team) -> None:
    team.submit({"queue.name": QUEUE})
    status = team.until(lambda s: condition(s, "PodsReady")[1] == "QueueUnmanaged")
    assert status["phase"] == "Queued"
    assert message(status, "PodsReady").startswith(
        "The job waits for the queue research, but Kueue does not know its PyTorchJob"
    )
    team.until_event("QueueUnmanaged")
    assert team.api.items(team.pods) == [], "a job that names a queue uses no quota unasked"
    team.edit({"cancel": True})
    team.until_gone(team.runs)


def test_a_job_that_is_admitted_again_before_its_pods_have_ended_gets_another_run_at_no_cost(team: Team) -> None:
    """The Training Operator takes running pods that are being deleted for failed ones, and gives the run up."""
    team.submit(ONE_GPU)
    hold(team, "sample-1", suspend=False)
    [pod] = team.until_run("sample-1", pods=1)
    name = pod["metadata"]["name"]
    bind(team, name)
    team.start("sample-1", pods=1)
    hold(team, "sample-1", suspend=True)
    team.until_phase("Queued")
    team.until_run("sample-1", pods=1)  # for as long as its node takes to end it
    hold(team, "sample-1", suspend=False)
    status = team.until(lambda s: condition(s, "Training")[1] == "Restarting")
    assert message(status, "Training").startswith("The queue admitted the job again before its pods had ended")
    team.api.request("DELETE", f"{team.pods}/{name}", {"gracePeriodSeconds": 0})
    hold(team, "sample-2", suspend=False)
    team.start("sample-2", pods=1)
    team.end("sample-2-worker-0")
    status = team.until_phase("Succeeded")
    assert (status["run"], status["restarts"]) == (2, 0)


def hold(team: Team, run: str, *, suspend: bool) -> None:
    """What Kueue does to a run."""
    wait_for(team.api, f"{team.runs}/{run}", lambda found: found is not None)
    body: Json = {}
    put(body, team.backend.suspend_key, suspend)
    team.api.patch(f"{team.runs}/{run}", body)


def bind(team: Team, pod: str) -> None:
    """From here on the pod ends only once its node, which is not there, says so."""
    target = {"apiVersion": "v1", "kind": "Node", "name": "nowhere"}
    body: Json = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
    team.api.request("POST", f"{team.pods}/{pod}/binding", body)


def test_a_job_that_waits_starts_once_kueue_is_installed_and_its_queue_made(
    plane: ControlPlane, early: Early
) -> None:
    team = early.team
    assert early.status["phase"] == "Queued"
    assert early.run["spec"]["runPolicy"]["suspend"] is True
    status = team.until(lambda s: condition(s, "PodsReady")[1] == "Queued" and "Kueue:" in str(s), "early")
    assert message(status, "PodsReady").endswith(f"Kueue: LocalQueue {QUEUE} doesn't exist")
    create_queue(plane.cluster, team.namespace, QUEUE, COMMON | {GPU: "1"})
    team.start("early-1", "early", pods=1)
    team.end("early-1-worker-0")
    team.until_phase("Succeeded", "early")


def test_a_job_without_a_queue_is_none_of_kueues_business(early: Early) -> None:
    early.team.submit(ONE_GPU | {"queue.name": None}, "free")
    early.team.start("free-1", "free", pods=1)
    early.team.end("free-1-worker-0")
    early.team.until_phase("Succeeded", "free")


@dataclass
class PodTime:
    """One pod's time, as the API server's events tell it."""

    job: str
    run: str
    seen: float
    ended: float = 0.0
    succeeded: bool = False


@dataclass
class Ledger:
    """Every pod that there ever was, in the order of their beginnings."""

    pods: dict[str, PodTime] = field(default_factory=dict)
    most: int = 0
    """Pods that held quota at one moment."""

    def take(self, found: list[Json]) -> list[Json]:
        """Note a state of all pods; those that hold quota."""
        now, holding = time.monotonic(), [pod for pod in found if holds_quota(pod)]
        for pod in holding:
            labels = pod["metadata"]["labels"]
            self.pods.setdefault(
                pod["metadata"]["uid"], PodTime(labels[names.JOB_LABEL], labels[names.RUN_LABEL], now)
            )
        ended = {pod["metadata"]["uid"] for pod in found if pod["status"].get("phase") == "Succeeded"}
        for uid in self.pods.keys() - {pod["metadata"]["uid"] for pod in holding}:
            self.pods[uid].ended = self.pods[uid].ended or now
            self.pods[uid].succeeded |= uid in ended
        self.most = max(self.most, len(holding))
        return holding

    def of(self, job: str) -> list[PodTime]:
        return [pod for pod in self.pods.values() if pod.job == job]


def holds_quota(pod: Json) -> bool:
    over = pod["status"].get("phase") in ("Succeeded", "Failed")
    return not over and "deletionTimestamp" not in pod["metadata"]


def play(team: Team, ledger: Ledger, step: str) -> None:
    """Run every pod that there is, and end it where the step is "finish", until the step is done."""
    started: set[str] = set()
    for found in states(team.api, team.pods, timeout_s=PATIENCE_S):
        holding = ledger.take(found)
        if DONE[step](ledger, holding):
            return
        for pod in holding:
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
            if uid not in started:
                run_pod(team.api, team.namespace, name)
                if step == "finish":
                    team.end(name)
                started.add(uid)
    pytest.fail(f"{step}: not within {PATIENCE_S} s: {ledger}")


DONE: dict[str, Callable[[Ledger, list[Json]], object]] = {
    "begin": lambda ledger, holding: len(holding) == QUOTA,
    "preempt": lambda ledger, holding: ledger.of(URGENT) and len(holding) == QUOTA,
    "finish": lambda ledger, holding: sum(pod.succeeded for pod in ledger.pods.values()) == 1 + len(ORDINARY),
}


def test_ten_jobs_share_quota_for_two_and_outlive_a_preemption_at_no_cost(plane: ControlPlane, early: Early) -> None:
    team, ledger = Team(plane.cluster.api, plane.cluster.namespace("ten"), PATIENCE_S), Ledger()
    create_queue(plane.cluster, team.namespace, QUEUE, COMMON | {GPU: str(QUOTA)})
    for name in ORDINARY:
        team.submit(ONE_GPU, name)
    play(team, ledger, "begin")
    for job in (pod.job for pod in list(ledger.pods.values())):
        team.until(lambda s: condition(s, "PodsReady")[0] == "True" or s.get("phase") == "Starting", job)
    team.submit(ONE_GPU | {"queue.priorityClass": "high"}, URGENT)
    play(team, ledger, "preempt")
    [victim] = [pod.job for pod in ledger.pods.values() if pod.ended]
    status = team.until(lambda s: "Kueue:" in str(s.get("conditions")), victim)
    assert (status["phase"], condition(status, "PodsReady")) == ("Queued", ("False", "Queued"))
    assert "more needed" in message(status, "PodsReady") or "Preempted" in message(status, "PodsReady")
    play(team, ledger, "finish")
    ended = {name: team.until_phase("Succeeded", name) for name in (*ORDINARY, URGENT)}
    print(table(ledger, ended, victim), f"{victim}: {message(status, 'PodsReady')}", sep="\n")
    assert ledger.most == QUOTA
    assert {name: status.get("restarts", 0) for name, status in ended.items()} == dict.fromkeys(ended, 0)
    assert {name: status["run"] for name, status in ended.items()} == dict.fromkeys(ended, 1)
    assert {name: len(ledger.of(name)) for name in ended} == dict.fromkeys(ended, 1) | {victim: 2}
    wait_for_all(team.api, team.pods, lambda pods: not any(map(holds_quota, pods)))


def table(ledger: Ledger, ended: dict[str, Json], victim: str) -> str:
    lines = [f"\n{'job':9}{'run':>4}{'pods':>5}{'waited s':>9}{'ran s':>7}{'restarts':>9}"]
    begin = min(pod.seen for pod in ledger.pods.values())
    for name, status in ended.items():
        pods = ledger.of(name)
        ran = sum(pod.ended - pod.seen for pod in pods)
        waited = pods[-1].ended - begin - ran
        note = "  preempted" if name == victim else ""
        lines.append(
            f"{name:9}{status['run']:4}{len(pods):5}{waited:9.1f}{ran:7.1f}{status.get('restarts', 0):9}{note}"
        )
    return "\n".join([*lines, f"most pods that held quota at one moment: {ledger.most} of {QUOTA}"])
