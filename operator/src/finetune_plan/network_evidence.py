"""Which network nodes are on, by their labels and allocatable resources. Pure; somebody else reads the nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .network_profile import Evidence, NetworkProfile

PRODUCT_LABEL = "nvidia.com/gpu.product"


@dataclass(frozen=True)
class NodeClass:
    """Nodes that are alike."""

    labels: Mapping[str, str] = field(default_factory=dict)
    resources: frozenset[str] = frozenset()
    """Names of what is allocatable."""
    count: int = 1


@dataclass(frozen=True)
class Nodes:
    """All nodes that pods can be bound to, as far as they could be read."""

    classes: tuple[NodeClass, ...] = ()
    error: str = ""
    """Why they could not be read; empty if they could."""


def fitting(profiles: Mapping[str, NetworkProfile], nodes: Sequence[NodeClass]) -> dict[str, Evidence]:
    """Name -> evidence, of the profiles whose evidence all these nodes have; of several, those that ask for most."""
    given = {name: profile.evidence for name, profile in profiles.items() if profile.evidence}
    found = {name: evidence for name, evidence in given.items() if all(_shows(node, evidence) for node in nodes)}
    most = max(map(_weight, found.values()), default=0)
    return {name: evidence for name, evidence in found.items() if _weight(evidence) == most}


def lacking(profiles: Mapping[str, NetworkProfile], nodes: Sequence[NodeClass]) -> dict[str, tuple[Evidence, int]]:
    """Name -> evidence, how many of these nodes lack some of it; of the profiles that some show, or else of all."""
    given = {name: profile.evidence for name, profile in profiles.items() if profile.evidence}
    found = {
        name: (evidence, count(node for node in nodes if not _shows(node, evidence)))
        for name, evidence in given.items()
    }
    total = count(nodes)
    return {name: each for name, each in found.items() if each[1] < total} or found


def count(nodes: Iterable[NodeClass]) -> int:
    return sum(node.count for node in nodes)


def classes(profiles: Mapping[str, NetworkProfile], nodes: Iterable[NodeClass]) -> tuple[NodeClass, ...]:
    """Nodes without what no profile asks for, and of those that are alike then, one."""
    every = [profile.evidence for profile in profiles.values() if profile.evidence]
    keys = {PRODUCT_LABEL, *(key for each in every for key in each.labels)}
    names = frozenset(name for each in every for name in each.resources)
    found = Counter[tuple[frozenset[tuple[str, str]], frozenset[str]]]()
    for node in nodes:
        labels = frozenset((key, value) for key, value in node.labels.items() if key in keys)
        found[labels, node.resources & names] += node.count
    return tuple(NodeClass(dict(labels), resources, n) for (labels, resources), n in found.items())


def _shows(node: NodeClass, evidence: Evidence) -> bool:
    labelled = all(
        key in node.labels and (not values or node.labels[key] in values) for key, values in evidence.labels.items()
    )
    return labelled and set(evidence.resources) <= node.resources


def _weight(evidence: Evidence) -> int:
    return len(evidence.labels) + sum(map(bool, evidence.labels.values())) + len(evidence.resources)
