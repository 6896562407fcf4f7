"""What was observed of a job, and what follows from it. All frozen: change returns a new value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.resource.status import Status
from finetune_api.runtime.report import FinalReport, Record

from .network_evidence import Nodes


@dataclass(frozen=True)
class ObservedRun:
    """The object of a run: one that carries the job's labels."""

    name: str
    number: int
    deleting: bool = False
    suspended: bool = False
    """Whether a queue (Kueue) holds it back; we set that switch at creation only (docs/adr/0028)."""
    uid: str = ""
    created: str = ""
    """When it was created (RFC 3339)."""
    reconciled: bool = True
    """Whether the backend's controller has ever reconciled it."""
    over: bool = False
    """Whether it has succeeded or failed in the eyes of that controller, which then makes no pod any more."""


@dataclass(frozen=True)
class ObservedPod:
    """A pod of a run."""

    name: str
    uid: str
    run: int
    node_rank: int
    phase: str
    """Pending, Running, Succeeded, Failed or Unknown."""
    exit_code: int | None = None
    """Of the trainer, once it has ended."""
    report: FinalReport | None = None
    """From the termination message."""
    disruption: str = ""
    """Why Kubernetes removed or rejected the pod (Preempted, Evicted, OutOfcpu ...), and its sentence, if it did."""
    failure: str = ""
    """Which container other than the trainer's failed, of a pod that has failed; empty if none did."""
    waiting: str = ""
    """Why it does not run yet, as Kubernetes reports it; empty if it runs or if nothing is reported."""
    termination_deadline: str = ""
    """End of its termination grace period (RFC 3339) if it is being deleted; else empty."""
    node: str = ""
    """That it is bound to."""
    bound_since: str = ""
    """When it was bound to a node (RFC 3339); empty if it is not, or if it has ended."""
    ended_at: str = ""
    """When the trainer ended (RFC 3339); empty if it has not, or if nothing says so."""
    unschedulable_since: str = ""
    """Since when no node can take it (RFC 3339); empty if one can, or if nothing is reported."""
    abandoned: bool = False
    """Whether its node does not report it: the node controller has marked it, or none of its containers has begun.
    Never of a pod that was deleted by force."""


@dataclass(frozen=True)
class ObservedClaim:
    """A PersistentVolumeClaim."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    access_modes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObservedQueue:
    """What is known of a run that a queue holds back."""

    message: str = ""
    """Why Kueue has not admitted it, in Kueue's words; empty if that is not known."""
    managed: bool = True
    """Whether Kueue knows the run, or may only not have seen it yet."""


@dataclass(frozen=True)
class Observed:
    """Everything that a decision may depend on, read at one moment."""

    resource: Mapping[str, Any]
    """The FinetuneJob as it is in the API server, status included."""
    runs: tuple[ObservedRun, ...] = ()
    pods: tuple[ObservedPod, ...] = ()
    records: tuple[Record, ...] = ()
    """The newest record of each kind from rank 0 of the current run."""
    backend: bool = True
    """Whether the backend's resource exists in this cluster."""
    refusal: str = ""
    """Why the API server could not create the current run when it was asked last; empty if it could."""
    name_taken: bool = False
    """Whether it could not because a foreign object has its name."""
    pods_refusal: str = ""
    """Its message when it refused a pod of that run; empty if it did not."""
    previous: tuple[str, ...] = ()
    """Runs and pods that a deleted job of the same name, or a deleted run that was never seen, has left."""
    queue: ObservedQueue = field(default_factory=ObservedQueue)
    """Of the run that is held back; without meaning if none is."""
    claim: ObservedClaim = field(default_factory=ObservedClaim)
    """The claim that the output lies on, of a job without a run; empty if there is no such claim."""
    nodes: Nodes | None = None
    """Of a job without a run that needs them to decide its network (resolve.needs_nodes), where they may be read."""


@dataclass(frozen=True)
class CreateRun:
    """Create the object of a run."""

    manifest: Mapping[str, Any]
    previous: str = ""
    """Name of the run before it, which must be gone; empty for the first."""


@dataclass(frozen=True)
class DeleteRun:
    """Delete the object of a run, and with it its pods."""

    name: str
    uid: str = ""


@dataclass(frozen=True)
class DeletePod:
    """Delete a pod of a run by force, without waiting for its node."""

    name: str
    uid: str


@dataclass(frozen=True)
class RecordResult:
    """Note a result on the claim that it lies on."""

    claim: str
    annotation: str
    text: str


Action = CreateRun | DeleteRun | DeletePod


@dataclass(frozen=True)
class Plan:
    """Actions and the new status. The status is written before anything is done."""

    actions: tuple[Action, ...]
    status: Status
    requeue_after: float | None = None
    """Seconds until time alone changes the answer."""
    record_result: RecordResult | None = None
    """Done before the status is written: the end of a job is the last status written."""
