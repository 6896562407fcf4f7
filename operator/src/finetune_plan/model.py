"""What was observed of a job, and what follows from it. All frozen: change returns a new value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.resource.status import Status
from finetune_api.runtime.report import FinalReport, Record


@dataclass(frozen=True)
class ObservedRun:
    """The object of a run: one that carries the job's labels."""

    name: str
    number: int
    deleting: bool = False
    suspended: bool = False
    """Whether a queue (Kueue) holds it back; we set that switch at creation only (docs/adr/0024)."""
    uid: str = ""


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
    """Why Kubernetes removed the pod (Preempted, Evicted, NodeLost ...); empty if it did not."""
    waiting: str = ""
    """Why it does not run yet, as Kubernetes reports it; empty if it runs or if nothing is reported."""
    termination_deadline: str = ""
    """End of its termination grace period (RFC 3339) if it is being deleted; else empty."""


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
    """The API server's message when it refused to create the current run; empty if it did not."""
    pods_refusal: str = ""
    """Its message when it refused a pod of that run; empty if it did not."""
    queue: ObservedQueue = field(default_factory=ObservedQueue)
    """Of the run that is held back; without meaning if none is."""
    claim: ObservedClaim = field(default_factory=ObservedClaim)
    """The claim that the output lies on, of a job without a run; empty if there is no such claim."""


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
class RecordResult:
    """Note a result on the claim that it lies on."""

    claim: str
    annotation: str
    text: str


Action = CreateRun | DeleteRun


@dataclass(frozen=True)
class Plan:
    """Actions and the new status. The status is written before anything is done."""

    actions: tuple[Action, ...]
    status: Status
    requeue_after: float | None = None
    """Seconds until time alone changes the answer."""
    record_result: RecordResult | None = None
    """Done before the status is written: the end of a job is the last status written."""
