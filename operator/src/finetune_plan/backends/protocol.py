"""What the product asks of a backend: the controller, and its resource, that turns a run into pods.

Everything that differs between two backends is declared here and nowhere else. All of it is pure: the operator and
the command line read and write the objects. tests/backends is the contract that every backend passes on a real
cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from finetune_plan.model import ObservedRun
from finetune_plan.workload import Workload


@dataclass(frozen=True)
class Right:
    """What the operator has to be allowed to do because of the backend: one rule of its role."""

    group: str
    resource: str
    verbs: tuple[str, ...]


class RunRef(NamedTuple):
    """The object of a run."""

    name: str
    uid: str


class Backend(Protocol):
    """One controller and its resource. A run is one object of it, called names.run_name(job, number).

    The object and its pods carry the workload's labels, by which they are found; the object names the FinetuneJob as
    its owner; and deleting it in the foreground leaves no pod.
    """

    kind: str
    """Of the resource; messages and log lines name it."""
    group: str
    version: str
    plural: str
    controller: str
    """What makes pods of the resource, as a sentence names it: "The <controller> does not run.\""""
    install: str
    """What to do where the resource is unknown, as the start of a sentence."""
    inspect: str
    """A command that shows whether the controller runs."""
    container: str
    """Name of the trainer's container in every pod."""
    suspend_key: str
    """Path in the object at which a queue holds the run back. A run that names a queue is rendered so; later only the
    queue writes it."""
    refusal_reason: str
    """Reason of the controller's Events about a pod that it could not create."""
    refusal_component: str
    """source.component of these Events."""
    rights: tuple[Right, ...]
    """Besides what the operator needs for any backend; the chart's role is generated from it."""

    def render(
        self, work: Workload, namespace: str | None = None, owner: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The manifest of a run. `owner` is an ownerReference, absent in an offline rendering."""

    def observe(self, raw: Mapping[str, Any]) -> ObservedRun:
        """What a decision needs to know of the object."""

    def is_reconciled(self, raw: Mapping[str, Any]) -> bool:
        """Whether the controller has reconciled the object at least once."""

    def node_rank(self, pod: Mapping[str, Any]) -> int:
        """The rank of a pod's node, from 0 to nodes - 1."""

    def host(self, run: str, node_rank: int) -> str:
        """The name under which the pods of a run find the one of that rank."""

    def names_pod(self, run: str, node_rank: int, name: str) -> bool:
        """Whether the controller would give this name to a run's pod of that rank."""

    def refused_run(self, event: Mapping[str, Any]) -> RunRef | None:
        """The run that an Event with refusal_reason is about; None if another component reports it, or it is about
        something else."""


def api_version(backend: Backend) -> str:
    """apiVersion of the resource."""
    return f"{backend.group}/{backend.version}"
