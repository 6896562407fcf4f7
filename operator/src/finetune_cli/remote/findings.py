"""Why a job does not run: an ordered list of small checks over what was seen. Pure; the list is the specification.

Each finding is a Problem: where (the object that said so), a reason, what is the matter, and the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetune_api.resource import conditions as c
from finetune_api.validation.predicates import find
from finetune_api.validation.problem import Problem
from finetune_plan.backends import DEFAULT as BACKEND

from .dataset import AWAITING
from .errors import INSTALL
from .pod_findings import SPOKEN_FOR, missing, run_path, waiting
from .seen import Seen
from .server import Json
from .views import condition, ended, moment
from .volume_findings import claims, config_maps

QUIET_SECONDS = 15.0
"""How long operators may take to notice something."""
BEAT_SECONDS = 120.0
"""Oldest heartbeat of an operator that lives: it writes one every 30 s."""
SILENT_SECONDS = 600.0
"""How long pods may run before the first step without a word from us: models are large."""


def findings(seen: Seen) -> list[Problem]:
    """What hinders the job, the deepest cause first; empty if nothing does."""
    found: dict[Problem, None] = {}
    for check in CHECKS:
        found |= dict.fromkeys(check(seen))
    return list(found)


def no_operator(seen: Seen) -> Iterator[Problem]:
    """Nobody has looked at the job as it is now."""
    metadata, status = seen.job["metadata"], seen.job.get("status") or {}
    if status.get("observedGeneration") == metadata["generation"] or ended(seen.job):
        return
    waiting = (seen.now - moment(metadata["creationTimestamp"])).total_seconds()
    beats = None if seen.leases is None else sorted(_beat(lease, seen) for lease in seen.leases)
    if beats and beats[0] < BEAT_SECONDS and waiting < QUIET_SECONDS:
        return
    remedy = f"{INSTALL}, or see how it is: kubectl get pods -A -l app.kubernetes.io/name=finetune-operator"
    yield Problem("operator", "NoOperator", f"No operator has looked at the job yet. {_heartbeat(beats)}", remedy)


def refused(seen: Seen) -> Iterator[Problem]:
    accepted = condition(seen.job, c.ACCEPTED)
    if accepted and accepted["status"] == "False" and not ended(seen.job):
        remedy = "Correct it: `kubectl apply` the corrected file, or delete the job and submit it again."
        yield Problem(_name(seen), accepted["reason"], f"The job is refused: {accepted['message']}", remedy)


def over(seen: Seen) -> Iterator[Problem]:
    failed = condition(seen.job, c.FAILED)
    if failed and failed["status"] == "True":
        name = seen.job["metadata"]["name"]
        remedy = f"`finetune logs {name}` shows the last lines of its pods."
        yield Problem(_name(seen), failed["reason"], failed["message"], remedy)


def suspended(seen: Seen) -> Iterator[Problem]:
    name, annotations = seen.job["metadata"]["name"], seen.job["metadata"].get("annotations") or {}
    if find(seen.job, "spec.suspend") is not True or ended(seen.job):
        return
    if AWAITING in annotations:
        message = "The job waits for its dataset: `finetune submit` was interrupted."
        remedy = "Run the same `finetune submit` again; it goes on where it stopped."
        yield Problem(_name(seen), "DatasetMissing", message, remedy)
    else:
        yield Problem(_name(seen), "Suspended", "The job is suspended.", f"`finetune resume {name}` lets it go on.")


def no_backend(seen: Seen) -> Iterator[Problem]:
    if not seen.backend:
        remedy = f"{BACKEND.install}; the job then starts by itself."
        yield Problem("cluster", "BackendMissing", f"This cluster does not know {BACKEND.kind}s.", remedy)


def not_created(seen: Seen) -> Iterator[Problem]:
    """What the operator says about the run: the queue holds it back, the server refuses it, settings hinder it."""
    ready = condition(seen.job, c.PODS_READY)
    usual = {*SPOKEN_FOR, "Creating", "BackendMissing", "Suspended", "Restarting"}
    if ready and ready["status"] == "False" and ready["reason"] not in usual and not ended(seen.job):
        remedy = _CREATE.get(ready["reason"], "Change what the message names; the job is tried again by itself.")
        yield Problem(_name(seen), ready["reason"], ready["message"], remedy)


def idle_backend(seen: Seen) -> Iterator[Problem]:
    """The object of the run is there, and nobody makes pods of it."""
    if seen.run is None or seen.pods or BACKEND.observe(seen.run).suspended or BACKEND.is_noticed(seen.run):
        return
    if (seen.now - moment(seen.run["metadata"]["creationTimestamp"])).total_seconds() > QUIET_SECONDS:
        message = f"The {BACKEND.kind} exists and nobody takes notice: the {BACKEND.controller} does not run."
        remedy = f"See how it is: {BACKEND.inspect}"
        yield Problem(run_path(seen.run), "BackendSilent", message, remedy)


def silent(seen: Seen) -> Iterator[Problem]:
    """All pods run and no step was made for long."""
    ready, training = condition(seen.job, c.PODS_READY), condition(seen.job, c.TRAINING)
    if not ready or ready["status"] != "True" or (training and training["status"] == "True"):
        return
    since = (seen.now - moment(ready["lastTransitionTime"])).total_seconds()
    if since > SILENT_SECONDS and not find(seen.job, "status.progress.step"):
        name = seen.job["metadata"]["name"]
        message = f"All pods run for {since / 60:.0f} minutes and no step was made."
        remedy = f"`finetune logs {name}` shows what they do: loading a large model takes its time."
        yield Problem(_name(seen), "NoStepYet", message, remedy)


CHECKS: tuple[Callable[[Seen], Iterator[Problem]], ...] = (
    no_operator, refused, over, suspended, no_backend, not_created, idle_backend,
    claims, config_maps, missing, waiting, silent,
)  # fmt: skip
_CREATE = {
    "Queued": "Wait until the queue has room, or choose another: queue.name.",
    "CreateRefused": "Ask whoever runs the cluster, or change the job so that it fits; it is tried again by itself.",
}


def _beat(lease: Json, seen: Seen) -> float:
    """Seconds since the operator's last heartbeat."""
    time = find(lease, "spec.renewTime")
    return (seen.now - moment(time)).total_seconds() if time else float("inf")


def _heartbeat(beats: list[float] | None) -> str:
    if beats is None:
        return "Whether one runs cannot be seen with your rights."
    if not beats:
        return "None has ever run in this cluster."
    return f"The last heartbeat of one is {beats[0]:.0f} s old."


def _name(seen: Seen) -> str:
    return f"finetunejob {seen.job['metadata']['name']}"
