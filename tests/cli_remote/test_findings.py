"""Why a job is not running: every finding with its reason and remedy, from a snapshot alone."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from builders import Json, put, resource
from finetune_api.validation.problem import Problem
from finetune_cli.remote.dataset_upload import AWAITING
from finetune_cli.remote.findings import findings
from finetune_cli.remote.snapshot import Snapshot

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
LONG_AGO, JUST_NOW = "2026-11-21T11:00:00Z", "2026-11-21T11:59:58Z"
FRESH, STALE = "2026-11-21T11:59:40.000000Z", "2026-11-21T11:00:00.000000Z"
RUN: Json = {"metadata": {"name": "sample-1", "uid": "r1", "creationTimestamp": LONG_AGO},
             "status": {"conditions": [{"type": "Created"}]}}  # fmt: skip
BOUND: Json = {"metadata": {"uid": "c1"}, "status": {"phase": "Bound"}}
UNBOUND: Json = {"metadata": {"uid": "c1"}, "status": {"phase": "Pending"}}


def job(changes: Json | None = None, *conditions: tuple[str, str, str, str], **more: object) -> Json:
    """A job that an operator has given at. conditions: type, status, reason, message."""
    body = resource(changes)
    body["metadata"] |= {"namespace": "team", "uid": "j1", "generation": 1, "creationTimestamp": LONG_AGO}
    told = [dict(zip(("type", "status", "reason", "message"), each, strict=True)) for each in conditions]
    body["status"] = {"observedGeneration": 1, "phase": "Starting", "layout": {"nodes": 2}}
    body["status"]["conditions"] = [each | {"lastTransitionTime": LONG_AGO} for each in told]
    for path, value in more.items():
        put(body, path.replace("__", "."), value)
    return body


def pod(name: str, **status: object) -> Json:
    metadata = {"name": name, "uid": name, "ownerReferences": [{"uid": "r1"}]}
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Pending", **status}}


def unscheduled(text: str) -> dict[str, object]:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": text}]}


def stuck(reason: str, text: str) -> dict[str, object]:
    waiting = {"state": {"waiting": {"reason": reason, "message": text}}}
    return {"conditions": [{"type": "PodScheduled", "status": "True"}], "containerStatuses": [waiting]}


def event(uid: str, reason: str, text: str, kind: str = "Warning") -> Json:
    return {"involvedObject": {"uid": uid}, "type": kind, "reason": reason, "message": text}


def lease(time: str) -> tuple[Json, ...]:
    return ({"spec": {"renewTime": time}},)


def snapshot(resource_: Json, **more: object) -> Snapshot:
    return Snapshot(resource_, NOW, **{"leases": lease(FRESH), **more})  # type: ignore[arg-type]


def refused_pod(text: str) -> Snapshot:
    return snapshot(
        job(),
        run=RUN,
        events=(event("r1", "FailedCreatePod", text),),
        pods=(pod("sample-1-worker-0", phase="Running"),),
    )


UNSEEN = job(status__observedGeneration=None, metadata__creationTimestamp=LONG_AGO)
QUOTA = (
    'pods "sample-1-worker-1" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'
)
CASES: dict[str, tuple[Snapshot, str, str, str, str]] = {
    "no operator was ever there": (snapshot(UNSEEN, leases=()), "operator", "NoOperator",
        "No operator has ever run in this cluster.", "Install the operator"),
    "the operator has died": (snapshot(UNSEEN, leases=lease(STALE)), "operator", "NoOperator",
        "Its last heartbeat was 3600 s ago.", "kubectl get pods -A"),
    "an operator lives and ignores the job": (snapshot(UNSEEN), "operator", "NoOperator",
        "Its last heartbeat was 20 s ago.", "kubectl get pods -A"),
    "heartbeats may not be seen": (snapshot(UNSEEN, leases=None), "operator", "NoOperator",
        "You may not read its leases", "Install the operator"),
    "the job is refused": (snapshot(job(None, ("Accepted", "False", "UnknownGpuType", "'X' is not known."))),
        "finetunejob sample", "UnknownGpuType", "The job is refused: 'X' is not known.", "`kubectl apply`"),
    "the job waits for nodes": (
        snapshot(job(None, ("Accepted", "Unknown", "NetworkUndecided", "No node is ready."))),
        "finetunejob sample", "NetworkUndecided", "The job is not accepted yet: No node is ready.",
        "looks again every minute"),
    "the job has failed": (
        snapshot(job(None, ("Failed", "True", "OutOfMemory", "A device ran out."), status__completionTime=LONG_AGO)),
        "finetunejob sample", "OutOfMemory", "A device ran out.", "`finetune logs sample`"),
    "the job is going to be failed": (
        snapshot(job(None, ("FailureTarget", "True", "DataRefused", "Line 3"),
                     ("PodsReady", "False", "Stopping", ""))),
        "finetunejob sample", "DataRefused", "Line 3", "finetune logs sample"),
    "the job is suspended": (snapshot(job({"suspend": True})), "finetunejob sample", "Suspended", "is suspended.",
        "`finetune resume sample`"),
    "a submission was interrupted": (snapshot(job({"suspend": True}, metadata__annotations={AWAITING: "x"})),
        "finetunejob sample", "DatasetMissing", "is waiting for its dataset", "Run the same `finetune submit` again"),
    "PyTorchJobs are not known": (snapshot(job(), backend=False), "cluster", "BackendMissing",
        "PyTorchJob resource is not installed", "Install the Training Operator 1.9"),
    "a queue holds the job back": (snapshot(job(None, ("PodsReady", "False", "Queued", "Not admitted."))),
        "finetunejob sample", "Queued", "Not admitted.", "Wait until the queue has capacity"),
    "nothing manages its queue": (snapshot(job(None, ("PodsReady", "False", "QueueUnmanaged", "It waits."))),
        "finetunejob sample", "QueueUnmanaged", "It waits.", "run the job without spec.queue"),
    "the server refuses the run": (
        snapshot(job(None, ("PodsReady", "False", "CreateRefused", "count/pytorchjobs=1"))),
        "finetunejob sample", "CreateRefused", "count/pytorchjobs=1", "the operator then tries again"),
    "the Training Operator does not act": (snapshot(job(), run={**RUN, "status": {}}), "pytorchjob sample-1",
        "BackendSilent", "the Training Operator has not reconciled it", "kubectl get pods -A"),
    "a claim is missing": (snapshot(job(), claims={"rows": None, "models": BOUND}), "persistentvolumeclaim rows",
        "NotFound", "The claim rows, which spec.job.data names, does not exist.", "Create it"),
    "a claim is not bound": (
        snapshot(job(), claims={"models": UNBOUND}, events=(event("c1", "ProvisioningFailed", 'no class "fast"'),)),
        "persistentvolumeclaim models", "ClaimPending", 'not bound to a volume: no class "fast"', "describe pvc"),
    "a ConfigMap is missing": (snapshot(job({"job.data": "configmap://rows/a"}), config_maps={"rows": None}),
        "configmap rows", "NotFound", "The ConfigMap rows, which spec.job.data names, does not exist.", "Create it"),
    "a ConfigMap lacks the key": (
        snapshot(job({"job.data": "configmap://rows/a"}), config_maps={"rows": {"data": {"b": "", "c": ""}}}),
        "configmap rows", "NotFound", "has no key a. Its keys: b, c.", "Correct spec.job.data"),
    "a quota is used up": (refused_pod(QUOTA), "pytorchjob sample-1",
        "QuotaExceeded", "limited: pods=1", "have the ResourceQuota raised"),
    "a quota wants requests": (refused_pod("failed quota: q: must specify limits.memory"), "pytorchjob sample-1",
        "QuotaNeedsLimits", "must specify limits.memory", "Set pods.cpu and pods.memory"),
    "Pod Security refuses the pod": (refused_pod('violates PodSecurity "restricted:latest": x'),
        "pytorchjob sample-1", "PodSecurity", "restricted:latest", "that the Pod Security level forbids"),
    "a LimitRange refuses the pod": (refused_pod("maximum memory usage per Container is 1Gi, but limit is 2Gi"),
        "pytorchjob sample-1", "LimitRange", "usage per Container is 1Gi", "Set pods.cpu, pods.memory"),
    "a priority class is missing": (refused_pod("no PriorityClass with name urgent was found"), "pytorchjob sample-1",
        "NoPriorityClass", "urgent", "change pods.priorityClassName"),
    "a service account is missing": (
        refused_pod('error looking up service account a/b: serviceaccount "b" not found'), "pytorchjob sample-1",
         "NoServiceAccount", 'serviceaccount "b" not found', "change pods.serviceAccountName"),
    "a pod is refused for another reason": (refused_pod("because"), "pytorchjob sample-1", "PodsRefused",
        "A pod cannot be created: because", "Ask the administrator of this cluster's admission rules."),
    "no node has the GPUs": (snapshot(job(), pods=(pod("p", **unscheduled("0/9 nodes are available: 9 Insufficient "
        "nvidia.com/gpu. preemption: 0/9 ...")),)), "pod p", "Unschedulable", "9 Insufficient nvidia.com/gpu",
        "No node has enough free GPUs for a pod: wait, or raise compute.nodes to use fewer GPUs per pod."),
    "nodes are tainted and of another kind": (snapshot(job(), pods=(pod("p", **unscheduled(
        "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) didn't match Pod's node "
        "affinity/selector.")),)), "pod p", "Unschedulable", "untolerated taint",
        "Add the taint to pods.tolerations, if the job may run on those nodes. Check compute.gpu_type"),
    "a claim is missing, says the scheduler": (
        snapshot(job(), pods=(pod("p", **unscheduled('persistentvolumeclaim "x" not found')),)),
        "pod p", "ClaimMissing", 'persistentvolumeclaim "x" not found', "Create the PersistentVolumeClaim"),
    "the kubelet says something new": (
        snapshot(job(), pods=(pod("p", **stuck("RunContainerError", "no such device")),)),
        "pod p", "RunContainerError", "no such device", "Resolve what the message names."),
    "no scheduler runs": (snapshot(job(), pods=(pod("p"),)), "pod p", "NotScheduled",
        "has not processed the pod yet", "is running."),
    "the image cannot be pulled, by two pods": (
        snapshot(job(), pods=tuple(pod(n, **stuck("ImagePullBackOff", "not found")) for n in ("p", "q"))),
        "pods p, q", "ImagePull", "ImagePullBackOff: not found", "Check pods.image"),
    "a secret is missing": (
        snapshot(job(), pods=(pod("p", **stuck("CreateContainerConfigError", 'secret "hf" not found')),)), "pod p",
         "ContainerConfig", 'secret "hf" not found', "Create the Secret or ConfigMap"),
    "a volume cannot be mounted": (
        snapshot(job(), pods=(pod("p", conditions=[{"type": "PodScheduled", "status": "True"}]),),
             events=(event("p", "FailedMount", 'configmap "rows" not found'),)),
        "pod p", "FailedMount", 'configmap "rows" not found', "Create or repair the volume"),
    "pods run and make no step": (snapshot(job(None, ("PodsReady", "True", "Running", "2 of 2 pods are running."))),
        "finetunejob sample", "NoStepYet", "All pods have been running for 60 minutes", "`finetune logs sample`"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_finding_has_path_reason_message_and_remedy(case: str) -> None:
    given, path, reason, message, remedy = CASES[case]
    [found] = findings(given)
    assert (found.path, found.reason) == (path, reason)
    assert message in found.message
    assert remedy in found.remedy


FINE = {
    "all pods run and steps are made": snapshot(job(
        None, ("Accepted", "True", "Accepted", "Fine."), ("PodsReady", "True", "Running", "2 of 2 pods are running."),
        ("Training", "True", "Stepping", "Steps."), status__progress={"step": 1})),
    "the job was created a moment ago": snapshot(
        job(status__observedGeneration=None, metadata__creationTimestamp=JUST_NOW)),
    "a claim waits for its first pod, as its class wants": snapshot(
        job(), claims={"models": UNBOUND}, events=(event("c1", "WaitForFirstConsumer", "waiting", "Normal"),)),
    "an old refusal of a pod that is there now": snapshot(
        job(), run=RUN, events=(event("r1", "FailedCreatePod", QUOTA),),
        pods=tuple({**pod(n), "status": {"phase": "Running"}} for n in ("p", "q"))),
    "what the operator repeats of its pods": snapshot(
        job(None, ("PodsReady", "False", "Unschedulable", "0 of 2 ..."))),
    "a container that is being created": snapshot(job(), pods=(pod("p", **stuck("ContainerCreating", "")),)),
    "a job that has succeeded": snapshot(
        job(None, ("Complete", "True", "Succeeded", "Done."), status__completionTime=LONG_AGO)),
}  # fmt: skip


@pytest.mark.parametrize("case", FINE)
def test_what_is_no_problem_is_not_a_finding(case: str) -> None:
    assert findings(FINE[case]) == []


def test_the_root_cause_comes_first() -> None:
    given = snapshot(UNSEEN, leases=(), claims={"rows": None}, pods=(pod("p"),))
    assert [each.reason for each in findings(given)] == ["NoOperator", "NotFound", "NotScheduled"]
    assert all(isinstance(each, Problem) and each.remedy for each in findings(given))
