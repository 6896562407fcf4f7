"""Why a job does not run: an ordered list of small checks of a snapshot. Pure; the list is the specification.

Each finding is a Problem: the object that reports it, a reason, a message and a remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetune_api.resource import conditions as c
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_plan.backends import DEFAULT as BACKEND

from . import volume_refs
from .api_client import Json
from .dataset_upload import AWAITING
from .errors import INSTALL
from .pod_findings import POD_REASONS, missing, run_path, waiting
from .snapshot import Snapshot
from .views import condition, condition_is_true, has_ended, parse_time

REACTION_SECONDS = 15.0
"""How long an operator may take to react."""
HEARTBEAT_SECONDS = 120.0
"""Oldest heartbeat of a live operator: it writes one every 30 s."""
FIRST_STEP_SECONDS = 600.0
"""How long pods may run before the first step: large models take minutes to load."""


def findings(snapshot: Snapshot) -> list[Problem]:
    """What prevents the job from running, the root cause first; empty if nothing does."""
    found: dict[Problem, None] = {}
    for check in CHECKS:
        found |= dict.fromkeys(check(snapshot))
    return list(found)


def no_operator(snapshot: Snapshot) -> Iterator[Problem]:
    """No operator has reconciled the current generation of the job."""
    metadata, status = snapshot.job["metadata"], snapshot.job.get("status") or {}
    if status.get("observedGeneration") == metadata["generation"] or has_ended(snapshot.job):
        return
    age = (snapshot.now - parse_time(metadata["creationTimestamp"])).total_seconds()
    ages = None if snapshot.leases is None else sorted(_heartbeat_age(lease, snapshot) for lease in snapshot.leases)
    if ages and ages[0] < HEARTBEAT_SECONDS and age < REACTION_SECONDS:
        return
    remedy = f"{INSTALL}, or check its pods: kubectl get pods -A -l app.kubernetes.io/name=finetune-operator"
    message = f"No operator has reconciled the job yet. {_heartbeat(ages)}"
    yield Problem("operator", "NoOperator", message, remedy)


def refused(snapshot: Snapshot) -> Iterator[Problem]:
    """The operator refuses the job."""
    accepted = condition(snapshot.job, c.ACCEPTED)
    if accepted and accepted["status"] == "False" and not has_ended(snapshot.job):
        remedy = "Correct it: `kubectl apply` the corrected file, or delete the job and submit it again."
        yield Problem(_name(snapshot), accepted["reason"], f"The job is refused: {accepted['message']}", remedy)


def undecided(snapshot: Snapshot) -> Iterator[Problem]:
    """The operator waits for the cluster to show whether the job can be accepted."""
    accepted = condition(snapshot.job, c.ACCEPTED)
    if accepted and accepted["status"] == "Unknown" and not has_ended(snapshot.job):
        message = f"The job is not accepted yet: {accepted['message']}"
        yield Problem(_name(snapshot), accepted["reason"], message, "The operator looks again every minute.")


def failed(snapshot: Snapshot) -> Iterator[Problem]:
    """The job has failed, or is going to when its pods have ended."""
    found = condition(snapshot.job, c.FAILED) or condition(snapshot.job, c.FAILURE_TARGET)
    if found and found["status"] == "True":
        name = snapshot.job["metadata"]["name"]
        remedy = f"`finetune logs {name}` shows the logs of its pods."
        yield Problem(_name(snapshot), found["reason"], found["message"], remedy)


def suspended(snapshot: Snapshot) -> Iterator[Problem]:
    """The job is suspended, by its user or by an interrupted `finetune submit`."""
    name, annotations = snapshot.job["metadata"]["name"], snapshot.job["metadata"].get("annotations") or {}
    if find(snapshot.job, "spec.suspend") is not True or has_ended(snapshot.job):
        return
    if AWAITING in annotations:
        message = "The job is waiting for its dataset: `finetune submit` was interrupted."
        remedy = "Run the same `finetune submit` again; it resumes the upload."
        yield Problem(_name(snapshot), "DatasetMissing", message, remedy)
    else:
        remedy = f"`finetune resume {name}` continues it."
        yield Problem(_name(snapshot), "Suspended", "The job is suspended.", remedy)


def no_backend(snapshot: Snapshot) -> Iterator[Problem]:
    """The backend's resource is not installed."""
    if not snapshot.backend:
        message = f"The {BACKEND.kind} resource is not installed in this cluster."
        remedy = f"{BACKEND.install}; the job then starts automatically."
        yield Problem("cluster", "BackendMissing", message, remedy)


def not_created(snapshot: Snapshot) -> Iterator[Problem]:
    """The operator cannot create the run: a queue, the API server or a setting prevents it."""
    ready = condition(snapshot.job, c.PODS_READY)
    reported_elsewhere = {
        *POD_REASONS,
        "Creating",
        "BackendMissing",
        "BackendSilent",
        "Suspended",
        "Restarting",
        "Stopping",
    }
    if not ready or ready["status"] != "False" or has_ended(snapshot.job):
        return
    if ready["reason"] not in reported_elsewhere:
        remedy = _CREATE.get(ready["reason"], "Resolve what the message names; the operator then tries again.")
        yield Problem(_name(snapshot), ready["reason"], ready["message"], remedy)


def idle_backend(snapshot: Snapshot) -> Iterator[Problem]:
    """The object of the run exists, and its controller creates no pods."""
    run = snapshot.run
    if run is None or snapshot.pods or BACKEND.observe(run).suspended or BACKEND.is_reconciled(run):
        return
    created = parse_time(run["metadata"]["creationTimestamp"])
    if (snapshot.now - created).total_seconds() > REACTION_SECONDS:
        message = f"The {BACKEND.kind} exists, but the {BACKEND.controller} has not reconciled it."
        remedy = f"Check its pods: {BACKEND.inspect}"
        yield Problem(run_path(run), "BackendSilent", message, remedy)


def claims(snapshot: Snapshot) -> Iterator[Problem]:
    """Claims that are missing or not bound, while pods are not ready."""
    if condition_is_true(snapshot.job, c.PODS_READY):
        return
    for claim, key in volume_refs.claims(snapshot.job["spec"]).items():
        if claim in snapshot.claims:
            yield from _claim(snapshot, claim, key)


def config_maps(snapshot: Snapshot) -> Iterator[Problem]:
    """ConfigMaps that are missing or lack the key, while pods are not ready."""
    if condition_is_true(snapshot.job, c.PODS_READY):
        return
    for (name, item), key in volume_refs.config_maps(snapshot.job["spec"]).items():
        if name in snapshot.config_maps:
            yield from _config_map(snapshot, name, item, key)


def no_step(snapshot: Snapshot) -> Iterator[Problem]:
    """All pods run, and training has not made a step for a long time."""
    ready, training = condition(snapshot.job, c.PODS_READY), condition(snapshot.job, c.TRAINING)
    if not ready or ready["status"] != "True" or (training and training["status"] == "True"):
        return
    since = (snapshot.now - parse_time(ready["lastTransitionTime"])).total_seconds()
    if since > FIRST_STEP_SECONDS and not find(snapshot.job, "status.progress.step"):
        name = snapshot.job["metadata"]["name"]
        message = f"All pods have been running for {since / 60:.0f} minutes without a training step."
        remedy = f"`finetune logs {name}` shows what they are doing: a large model takes a while to load."
        yield Problem(_name(snapshot), "NoStepYet", message, remedy)


CHECKS: tuple[Callable[[Snapshot], Iterator[Problem]], ...] = (
    no_operator, refused, undecided, failed, suspended, no_backend, not_created, idle_backend,
    claims, config_maps, missing, waiting, no_step,
)  # fmt: skip
_CREATE = {
    "Queued": "Wait until the queue has capacity, or choose another one: queue.name.",
    "NameTaken": "Delete the object that the message names, or rename the job; the operator then tries again.",
    "QueueUnmanaged": "Ask the administrator of the cluster, or run the job without spec.queue.",
    "CreateRefused": "Ask the administrator of the cluster, or change the job; the operator then tries again.",
}


def _heartbeat_age(lease: Json, snapshot: Snapshot) -> float:
    """Seconds since an operator's last heartbeat."""
    time = find(lease, "spec.renewTime")
    return (snapshot.now - parse_time(time)).total_seconds() if time else float("inf")


def _heartbeat(ages: list[float] | None) -> str:
    if ages is None:
        return "You may not read its leases, so it is unknown whether one is running."
    if not ages:
        return "No operator has ever run in this cluster."
    return f"Its last heartbeat was {ages[0]:.0f} s ago."


def _name(snapshot: Snapshot) -> str:
    return f"finetunejob {snapshot.job['metadata']['name']}"


def _config_map(snapshot: Snapshot, name: str, item: str, key: str) -> Iterator[Problem]:
    path, found = f"configmap {name}", snapshot.config_maps[name]
    if found is None:
        message = f"The ConfigMap {name}, which spec.{key} names, does not exist."
        yield Problem(path, "NotFound", message, "Create it; the pods then start automatically.")
        return
    items = {*(found.get("data") or ()), *(found.get("binaryData") or ())}
    if item not in items:
        message = f"The ConfigMap {name} has no key {item}. Its keys: {', '.join(sorted(items)) or 'none'}."
        yield Problem(path, "NotFound", message, f"Correct spec.{key}, or add the key.")


def _claim(snapshot: Snapshot, claim: str, key: str) -> Iterator[Problem]:
    path, found = f"persistentvolumeclaim {claim}", snapshot.claims[claim]
    if found is None:
        message = f"The claim {claim}, which spec.{key} names, does not exist."
        yield Problem(path, "NotFound", message, "Create it, or correct the name; the pods then start automatically.")
        return
    if find(found, "status.phase") == "Bound":
        return
    events = [e for e in snapshot.events if e["involvedObject"].get("uid") == found["metadata"]["uid"]]
    if any(e["reason"] == "WaitForFirstConsumer" for e in events):
        return  # it is bound when its first pod is scheduled, and what prevents that is reported for the pod
    cause = f": {events[-1]['message']}" if events else "."
    remedy = f"Check its storage class and size: kubectl describe pvc {claim}"
    yield Problem(path, "ClaimPending", f"The claim {claim} is not bound to a volume{cause}", remedy)
