"""Sampled jobs on a simulated cluster, one reconcile pass after another.

Each plan is applied to the cluster, then something else happens to it: pods run, fail or disappear, time passes,
the spec is edited. Every history has its own seed. The cluster is data in Kubernetes' own form; the product is
asked for nothing but the next plan.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from . import jobs, product

Json = dict[str, Any]

PASSES = 8
BIRTH = datetime(2026, 1, 1, tzinfo=UTC)
MOST_PODS = 4
"""Pods that are simulated where a run has more nodes."""

PAUSES = (0, 1, 5, 9, 11, 31, 61, 400, 7200, 100_000)
WAITING = (
    ("", ""),
    ("", "ContainerCreating"),
    ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "Unschedulable"),
    ('persistentvolumeclaim "rows" not found', "Unschedulable"),
    ("pod has unbound immediate PersistentVolumeClaims", "Unschedulable"),
    ("Back-off pulling image", "ImagePullBackOff"),
    ("couldn't parse image name", "InvalidImageName"),
    ('secret "hub" not found', "CreateContainerConfigError"),
    ("back-off 10s restarting failed container", "CrashLoopBackOff"),
)
REFUSALS = (
    'pods "x" is forbidden: exceeded quota: gpus, requested: 8',
    'pods "x" is forbidden: failed quota: compute: must specify cpu',
    'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
    "maximum memory usage per Container is 1Gi, but limit is 64Gi.",
    "no PriorityClass with name low was found",
    'error looking up service account team/reader: serviceaccount "reader" not found',
    "admission webhook says no",
)
EXITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 75, 75, 77, 134, 137, 143, -1)
DISRUPTIONS = ("PreemptionByScheduler", "DeletionByTaintManager", "TerminationByKubelet")
GONE = ("Evicted", "NodeLost", "Preempting", "Shutdown", "NodeAffinity")
METRICS: tuple[Json, ...] = ({}, {"train.loss": 1.25, "val.loss": None}, {"val.loss": 0.5, "val.loss.initial": 2})
LIFECYCLE = {
    "lifecycle.maxRestarts": (0, 1, 3),
    "lifecycle.activeDeadlineSeconds": (1, 60, 7200, 100_000),
    "lifecycle.terminationGracePeriodSeconds": (30, 86_400),
    "lifecycle.ttlSecondsAfterFinished": (0, 60, 7200),
}
CONDITIONS = ("Created", "Running", "Restarting", "Suspended", "Succeeded", "Failed")


@dataclass
class Cluster:
    """One job and its objects."""

    draw: Random
    job: Json
    settings: Json
    now: datetime = BIRTH
    runs: list[Json] = field(default_factory=list)
    pods: list[Json] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    backend: bool = True
    refusal: str = ""
    pods_refusal: str = ""
    claim: Json = field(default_factory=dict)

    def observation(self) -> Json:
        """What the operator observes now."""
        return copy.deepcopy({
            "job": self.job, "runs": self.runs, "pods": self.pods, "log": self.log, "backend": self.backend,
            "refusal": self.refusal, "pods_refusal": self.pods_refusal, "claim": self.claim,
        })  # fmt: skip

    @property
    def status(self) -> Json:
        found: Json = self.job.get("status") or {}
        return found

    def chance(self, share: float) -> bool:
        return self.draw.random() < share


@dataclass(frozen=True)
class Sample:
    """One pass over one job: what was observed, and what the product answered."""

    observation: Json
    settings: Json
    now: str
    answer: Json


def history(number: int) -> Iterator[Sample]:
    """The passes over one job."""
    cluster = _new(Random(number))
    for each in range(PASSES):
        if each:
            _advance(cluster)
        observation, now = cluster.observation(), cluster.now.isoformat()
        answer = product.plan(copy.deepcopy(observation), cluster.settings, now)
        yield Sample(observation, copy.deepcopy(cluster.settings), now, answer)
        _apply(cluster, answer)


def _new(draw: Random) -> Cluster:
    name = draw.choice(("sample", "a", "a" * 45))
    metadata = {"name": name, "namespace": "team", "uid": f"u-{draw.randrange(1000)}", "generation": 1,
                "labels": {"a": "b"}}  # fmt: skip
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FinetuneJob", "metadata": metadata,
           "spec": jobs.spec(draw)}  # fmt: skip
    if draw.random() < 0.2:
        count = draw.randrange(1, 5)
        job["status"] = {"run": count, "restarts": count, "startTime": "2025-12-31T23:59:00Z"}
    return Cluster(draw, job, _settings(draw), backend=draw.random() > 0.04)


def _settings(draw: Random) -> Json:
    choices: dict[str, tuple[Any, ...]] = {
        "trainer_image": ("registry.example/trainer:2",),
        "shared_memory": ("16Gi",),
        "grace_period_seconds": (30, 600),
    }
    found: Json = {key: draw.choice(values) for key, values in choices.items() if draw.random() < 0.2}
    npu = {"products": (), "memory_gib": 64, "resource": "example.com/npu"}
    return found | {"service_accounts": ["reader"], "accelerators": {"NPU": npu}}


def _apply(cluster: Cluster, answer: Json) -> None:
    """Apply the plan; in a few cases the operator stops before or in between."""
    if cluster.chance(0.04):
        return
    cluster.job["status"] = answer["status"]
    cluster.refusal = ""
    for action in answer["actions"]:
        if cluster.chance(0.06):
            return
        if "delete" in action:
            _delete(cluster, action["delete"])
        elif cluster.chance(0.1):
            cluster.refusal = cluster.draw.choice(('pytorchjobs "x" is forbidden: exceeded quota', "it is not ours."))
        else:
            _create(cluster, action["create"])
    if answer["remember"]:
        cluster.claim = {answer["remember"]["annotation"]: answer["remember"]["text"]}


def _create(cluster: Cluster, manifest: Json) -> None:
    run = copy.deepcopy(manifest)
    run["metadata"] |= {"uid": f"run-{len(cluster.runs)}-{cluster.draw.randrange(1000)}"}
    kinds = cluster.draw.sample(CONDITIONS, cluster.draw.randrange(4))
    run["status"] = {"conditions": [{"type": kind, "status": "True"} for kind in kinds]}
    cluster.runs.append(run)
    cluster.log, cluster.pods_refusal = [], ""


def _delete(cluster: Cluster, name: str) -> None:
    run = next(r for r in cluster.runs if r["metadata"]["name"] == name)
    match cluster.draw.randrange(4):
        case 0:
            run["metadata"]["deletionTimestamp"] = _time(cluster)
        case 1:
            cluster.runs.remove(run)  # its pods still exist
        case _:
            cluster.runs.remove(run)
            cluster.pods = [p for p in cluster.pods if not p["metadata"]["name"].startswith(f"{name}-")]
    for pod in cluster.pods:
        if cluster.chance(0.5):
            pod["metadata"]["deletionTimestamp"] = _time(cluster, cluster.draw.choice((-60, -11, -10, -6, 30)))


def _advance(cluster: Cluster) -> None:
    """Time passes, and something happens to the spec, the PyTorchJob or its pods."""
    cluster.now += timedelta(seconds=cluster.draw.choice(PAUSES))
    cluster.log = []
    _edit(cluster)
    if cluster.status.get("completionTime") and cluster.chance(0.6):
        _recreate(cluster)
    elif cluster.runs:
        cluster.draw.choice(_EVENTS)(cluster)
    else:
        cluster.backend = not cluster.chance(0.1)
        if cluster.chance(0.7):
            cluster.pods = []


def _edit(cluster: Cluster) -> None:
    draw, spec = cluster.draw, cluster.job["spec"]
    before = copy.deepcopy(spec)
    if not cluster.status.get("run") and cluster.chance(0.7):
        cluster.job["spec"] = spec = jobs.spec(draw, wrong=0.15)
    if cluster.chance(0.1) or spec.get("suspend") is True:
        spec["suspend"] = cluster.chance(0.5)
    if cluster.chance(0.02):
        spec["cancel"] = True
    if cluster.chance(0.2):
        for path in draw.sample(tuple(LIFECYCLE), 2):
            jobs.put(spec, path, draw.choice(LIFECYCLE[path]))
    if cluster.chance(0.03):
        spec.pop("compute", None)  # as if a newer operator refused an accepted spec
    if cluster.chance(0.1):
        cluster.settings = _settings(draw) | ({"service_accounts": []} if cluster.chance(0.3) else {})
    cluster.job["metadata"]["generation"] += spec != before


def _recreate(cluster: Cluster) -> None:
    """The job was deleted and applied again; its claim still records the result."""
    cluster.job["status"] = {}
    cluster.job["metadata"] |= {"uid": f"u-{cluster.draw.randrange(1000)}", "generation": 1}
    cluster.runs, cluster.pods = [], []
    if cluster.chance(0.5):
        cluster.job["spec"] = jobs.spec(cluster.draw, wrong=0.15)
    if cluster.chance(0.2):
        cluster.job["spec"]["suspend"] = True
    if cluster.claim and cluster.chance(0.15):
        cluster.claim = {key: cluster.draw.choice(("{}", "no json", '{"configuration": 1}')) for key in cluster.claim}


def _pods(cluster: Cluster) -> list[Json]:
    """The pods of the newest run; those that do not exist yet are created as pending."""
    run = cluster.runs[-1]
    worker = run["spec"]["pytorchReplicaSpecs"]["Worker"]
    for pod in range(min(worker["replicas"], MOST_PODS)):
        name = f"{run['metadata']['name']}-worker-{pod}"
        if all(p["metadata"]["name"] != name for p in cluster.pods):
            labels = worker["template"]["metadata"]["labels"] | {"training.kubeflow.org/replica-index": str(pod)}
            metadata = {"name": name, "namespace": "team", "uid": f"pod-{name}", "labels": labels}
            cluster.pods.append({"metadata": metadata, "status": {"phase": "Pending"}})
    return [p for p in cluster.pods if p["metadata"]["name"].startswith(f"{run['metadata']['name']}-")]


def _container(pod: Json, phase: str, state: Json, **status: Any) -> None:
    pod["status"] = {"phase": phase, "containerStatuses": [{"name": "pytorch", "state": state}]} | status


def _refuse_pods(cluster: Cluster) -> None:
    cluster.pods_refusal = cluster.draw.choice(("", *REFUSALS))


def _wait(cluster: Cluster) -> None:
    for pod in _pods(cluster):
        message, reason = cluster.draw.choice(WAITING)
        if cluster.chance(0.2):
            _container(pod, "Running", {"running": {}})
        elif reason == "Unschedulable":
            said = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
            pod["status"] = {"phase": "Pending", "conditions": [said]}
        else:
            _container(pod, "Pending", {"waiting": {"reason": reason, "message": message}} if reason else {})


def _run(cluster: Cluster) -> None:
    for pod in _pods(cluster):
        _container(pod, "Running", {"running": {}})
    cluster.log = ["loading", *(cluster.draw.sample(_records(cluster), cluster.draw.randrange(6)))]


def _half(cluster: Cluster) -> None:
    _run(cluster)
    pod = cluster.draw.choice(_pods(cluster))
    pod["status"]["phase"] = cluster.draw.choice(("Unknown", "Pending", "Succeeded"))


def _succeed(cluster: Cluster) -> None:
    _run(cluster)
    first, *others = _pods(cluster)
    _end(cluster, first, 0, report=not cluster.chance(0.15))
    for pod in others:
        if cluster.chance(0.6):
            _end(cluster, pod, 0, report=cluster.chance(0.3))


def _fail(cluster: Cluster) -> None:
    _run(cluster)
    pods = _pods(cluster)
    failed = cluster.draw.sample(pods, cluster.draw.randrange(1, len(pods) + 1))
    for pod in failed:
        _end(cluster, pod, cluster.draw.choice(EXITS), report=cluster.chance(0.6))
    if cluster.chance(0.4):
        for pod in pods:
            if pod not in failed:
                _end(cluster, pod, 9, report=cluster.chance(0.7))


def _lose_peer(cluster: Cluster) -> None:
    """A rank that lost a peer ends, and the pod that caused it has not ended yet."""
    _run(cluster)
    _end(cluster, cluster.draw.choice(_pods(cluster)), 9, report=True)


def _lose(cluster: Cluster) -> None:
    _run(cluster)
    pods = _pods(cluster)
    pod = cluster.draw.choice(pods)
    if cluster.chance(0.4):
        pod["status"] = {"phase": "Failed", "reason": cluster.draw.choice(GONE)}
    else:
        if cluster.chance(0.6):
            _end(cluster, pod, cluster.draw.choice((137, 143, 75, 1)), report=cluster.chance(0.5))
        said = {"type": "DisruptionTarget", "status": "True", "reason": cluster.draw.choice(DISRUPTIONS)}
        pod["status"]["conditions"] = [said]
    if len(pods) > 1 and cluster.chance(0.5):
        _end(cluster, pods[0] if pods[0] is not pod else pods[1], 9, report=True)


def _vanish(cluster: Cluster) -> None:
    if not cluster.pods:
        _run(cluster)
    for pod in cluster.draw.sample(cluster.pods, cluster.draw.randrange(1, len(cluster.pods) + 1)):
        cluster.pods.remove(pod)


def _queue(cluster: Cluster) -> None:
    cluster.runs[-1]["spec"]["runPolicy"]["suspend"] = True
    if cluster.chance(0.7):
        cluster.pods = []


def _leave(cluster: Cluster) -> None:
    """Deletions that were under way complete."""
    if all("deletionTimestamp" not in run["metadata"] for run in cluster.runs):
        _run(cluster)
    cluster.runs = [run for run in cluster.runs if "deletionTimestamp" not in run["metadata"]]
    cluster.pods = [pod for pod in cluster.pods if "deletionTimestamp" not in pod["metadata"]]


_EVENTS: tuple[Callable[[Cluster], None], ...] = (
    _refuse_pods, _refuse_pods, _wait, _wait, _wait, _run, _run, _run, _half, _succeed, _succeed, _succeed,
    _fail, _fail, _fail, _fail, _lose_peer, _lose, _vanish, _queue, _leave,
)  # fmt: skip


def _end(cluster: Cluster, pod: Json, code: int, *, report: bool) -> None:
    message = json.dumps(_report(cluster, code)) if report else cluster.draw.choice(("", "Traceback", "{}"))
    ended = {"exitCode": code, "reason": "Completed", "message": message}
    _container(pod, "Failed" if code else "Succeeded", {"terminated": ended})


def _report(cluster: Cluster, code: int) -> Json:
    draw, at = cluster.draw, cluster.now.timestamp() - cluster.draw.choice((0, 3, 12))
    cause = {"rank": draw.randrange(8), "node": draw.randrange(4), "time": at - draw.random(), "error": "boom"}
    result = draw.choice(("/mnt/claims/models/out/result", "/mnt/output/sample/result", "s3://bucket/out/result", ""))
    return {
        "record": "report", "time": at, "exit_code": code, "reason": "Reason", "message": draw.choice(("Why.", "")),
        "step": draw.randrange(100), "digest": draw.choice(("", "sha256:1")), "result": "" if code else result,
        "metrics": draw.choice(METRICS),
        "best_step": draw.choice((None, 7)), "cause": draw.choice((None, cause)) if code else None,
    }  # fmt: skip


def _records(cluster: Cluster) -> list[str]:
    draw, at, step = cluster.draw, cluster.now.timestamp(), cluster.draw.randrange(1, 100)
    tokens = draw.choice((0, 100))
    dataset = {"record": "dataset", "rows": 9, "used": 8, "refused": 1, "truncated": 0, "tokens": tokens,
               "target_tokens": tokens // 3}  # fmt: skip
    progress = {"record": "progress", "time": at, "total_steps": draw.choice((0, 100)), "epoch": 0.12345,
                "loss": draw.choice((None, 1.23456789)), "learning_rate": 1e-5, "grad_norm": draw.choice((None, 1.5)),
                "tokens_per_second": draw.choice((None, 12.5)), "eta_seconds": draw.choice((None, 61.5))}  # fmt: skip
    said: list[Json] = [
        {**dataset, "split": "train"},
        {**dataset, "split": "validation"},
        {"record": "resume", "time": at, "step": step},
        {**progress, "step": step},
        {**progress, "step": step + 1},
        {"record": "evaluation", "time": at, "step": step, "loss": draw.choice((None, 1.5)), "rows": 9, "best": True},
        {"record": "checkpoint", "time": at, "step": step, "seconds": 1.5},
        {"record": "surprise"},
    ]
    return [json.dumps(record, separators=(",", ":")) for record in said]


def _time(cluster: Cluster, seconds: float = 0) -> str:
    return (cluster.now + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
