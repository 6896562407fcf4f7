"""What was seen of a job, and what follows from it. All frozen: change returns a new value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_api.resource.status import Status
from finetune_api.runtime.report import FinalReport, Record


@dataclass(frozen=True)
class RunSeen:
    """A PyTorchJob that carries the job's labels."""

    name: str
    number: int
    deleting: bool = False
    suspended: bool = False
    """Whether a queue (Kueue) holds it back; we never touch that switch."""
    uid: str = ""


@dataclass(frozen=True)
class PodSeen:
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
    lost: str = ""
    """Why Kubernetes took the pod away (Preempted, Evicted, NodeLost ...); empty if it did not."""
    waiting: str = ""
    """Why it does not run yet, in Kubernetes' own words; empty if it does or if nothing is said."""
    leaves_by: str = ""
    """The end of its grace period (RFC 3339), if it was told to leave; else empty."""


@dataclass(frozen=True)
class ClaimSeen:
    """A PersistentVolumeClaim."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    access_modes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Observed:
    """Everything that a decision may look at, read at one moment."""

    resource: Mapping[str, Any]
    """The FinetuneJob as it is in the API server, status included."""
    runs: tuple[RunSeen, ...] = ()
    pods: tuple[PodSeen, ...] = ()
    records: tuple[Record, ...] = ()
    """The newest record of each kind from rank 0 of the current run."""
    backend: bool = True
    """Whether the Training Operator's resource exists in this cluster."""
    refusal: str = ""
    """What the API server said when it refused to create the current run; empty if it did not."""
    pods_refusal: str = ""
    """What it said when it refused a pod of that run; empty if it did not."""
    claim: ClaimSeen = field(default_factory=ClaimSeen)
    """The claim that the output lies on, of a job without a run; empty if there is no such claim."""


@dataclass(frozen=True)
class CreateRun:
    """Create the PyTorchJob of a run."""

    manifest: Mapping[str, Any]
    previous: str = ""
    """Name of the run before it, which must be gone; empty for the first."""


@dataclass(frozen=True)
class DeleteRun:
    """Delete a PyTorchJob and its pods."""

    name: str
    uid: str = ""


@dataclass(frozen=True)
class Remember:
    """Note a result on the claim that it lies on."""

    claim: str
    annotation: str
    text: str


Action = CreateRun | DeleteRun


@dataclass(frozen=True)
class Plan:
    """What should be done, and what the status should say. The status is written before anything is done."""

    actions: tuple[Action, ...]
    status: Status
    requeue_after: float | None = None
    """Seconds until time alone changes the answer."""
    remember: Remember | None = None
    """Done before the status is written: an end is the last that is said of a job."""
